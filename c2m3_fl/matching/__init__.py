"""Matching: finding the permutations into the universe, one algorithm a file."""
