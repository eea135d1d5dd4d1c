"""Choice of the device."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to work on.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA where present, else the CPU) or anything `torch.device` takes.

    Raises
    ------
    ValueError
        If the name is no device, or CUDA is asked for and absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{device!r} was asked for, but torch finds no CUDA device; use 'auto' or 'cpu'")
    return resolved
