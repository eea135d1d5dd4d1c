"""The side that faces Flower: the ServerApp, its settings, strategies, records and resuming."""
