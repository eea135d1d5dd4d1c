"""C2M3 beside Flower's own strategies: ``python -m simulations federated``."""
