"""Choice of the device."""

from __future__ import annotations

from typing import Any

import torch

from c2m3_fl.errors import OptionError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to work on.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA where present, else the CPU) or anything `torch.device` takes.

    Raises
    ------
    OptionError
        If the name is no device, or CUDA is asked for and absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"{device!r} is no device; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"{device!r} was asked for, but torch finds no CUDA device; use 'auto' or 'cpu'")
    return resolved


def coarse_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device has instructions that multiply matrices in it, which on CPUs are some four times as fast.

    None elsewhere, where such products would be emulated, and for torch versions that do not tell what the CPU can do.
    """
    supported = False
    if device.type == "cuda":
        with torch.cuda.device(device):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        supported = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if supported else None
