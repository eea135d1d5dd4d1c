"""Networks inside of wrappers: what `torch.compile`, data parallelism and weight averaging put around a module.

Wrappers prefix the names in the state dict (``_orig_mod.``, ``module.``). A spec speaks of the plain network's names.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_HOLDERS = (DataParallel, DistributedDataParallel, AveragedModel)
_COMPILED = "_orig_mod"
# Names that no network gives to a child of its own; FSDP and activation checkpoints wrap children, not only the whole.
_RESERVED = {_COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def plain_module(module: nn.Module) -> nn.Module:
    """The network inside of `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel`."""
    while True:
        if isinstance(module, _HOLDERS):
            module = module.module
        elif (inner := dict(module.named_children()).get(_COMPILED)) is not None:
            module = inner
        else:
            return module


def plain_name(name: str) -> str:
    """The name that a tensor has in the state dict of the plain network.

    A leading ``module.`` goes, and ``_orig_mod.`` and its like wherever they stand. A network may have a child called
    ``module``: ask only for names that the network does not have.

    Examples
    --------
    >>> plain_name("module._orig_mod.layer.weight")
    'layer.weight'
    """
    parts = [part for part in name.split(".") if part not in _RESERVED]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)
