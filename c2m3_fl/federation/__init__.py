"""The side that faces Flower: the strategy, what it asks of clients and of their replies, and its checkpoints."""
