"""The Flower ServerApp, and experiments that run it: ``python -m simulations``."""
