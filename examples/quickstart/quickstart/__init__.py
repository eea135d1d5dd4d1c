"""Flower's PyTorch template with C2M3."""
