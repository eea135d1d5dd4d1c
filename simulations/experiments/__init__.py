"""Experiments: each folder only what it measures and how that is shown."""
