"""Cycle-consistent multi-model merging for federated learning."""
