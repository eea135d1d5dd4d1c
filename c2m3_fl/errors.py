"""What every part of the package may raise. The errors of specs and of activations are with those."""


class OptionError(ValueError):
    """An option that does not exist, or options that contradict each other: the operator's mistake."""


class ClientError(ValueError):
    """State dicts or weights of clients that cannot be merged."""


class StructureError(ClientError):
    """A state dict that holds other tensors than the model: others' may have the same fault."""
