"""Choice of the device."""

from __future__ import annotations

from typing import Any

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


def coarse_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device's own instructions multiply matrices in it, several times faster than in float32.

    None elsewhere, where such products would be emulated, and for torch versions that do not tell what the CPU can do.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        supported = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if supported else None
