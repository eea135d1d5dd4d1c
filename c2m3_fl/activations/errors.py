"""What repair raises."""


class RepairError(ValueError):
    """An input that the activations cannot be measured on or repaired with."""
