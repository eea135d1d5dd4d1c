"""Matchers side by side: objective, accuracy, time and memory; sets of networks; matching by activations."""
