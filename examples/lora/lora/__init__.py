"""Text classification: adapters alone are federated."""
