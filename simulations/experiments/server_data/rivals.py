"""Other uses of a server's inputs, to compare repairs with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]

_SHRINK = 0.9


def distilled(
    module: nn.Module,
    start: Mapping[str, Tensor],
    inputs: Tensor,
    teacher: Tensor,
    *,
    steps: int = 200,
    rate: float = 1e-3,
) -> State:
    """Ensemble distillation (Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion", NeurIPS 2020).

    Parameters
    ----------
    module
        The architecture.
    start
        The average that is trained.
    inputs
        Of the server.
    teacher
        The clients' averaged class scores on them, shape ``(examples, classes)``.
    steps, rate
        Of Adam, on batches of 64.
    """
    return _trained(module, start, (inputs, teacher.softmax(1)), steps, rate)


def fine_tuned(
    module: nn.Module,
    start: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 200,
    rate: float = 1e-3,
) -> State:
    """The average trained on the server's inputs where these have labels; parameters as for `distilled`."""
    classes = functional.one_hot(labels, int(module(inputs[:1]).shape[1])).float()
    return _trained(module, start, (inputs, classes), steps, rate)


def _trained(
    module: nn.Module, start: Mapping[str, Tensor], pairs: tuple[Tensor, Tensor], steps: int, rate: float
) -> State:
    inputs, wanted = pairs
    module.load_state_dict(dict(start))
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (min(64, len(inputs)),), generator=generator)
        loss = functional.cross_entropy(module(inputs[batch]), wanted[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def regmean(
    module: nn.Module, clients: Sequence[Mapping[str, Tensor]], weights: Sequence[float], inputs: Sequence[Tensor]
) -> State:
    """RegMean (Jin, Ren, Preotiuc-Pietro and Cheng, ICLR 2023), by the Gram matrices of the clients' training inputs.

    Linear layers are merged in closed form, with those matrices' off-diagonal entries shrunk by 0.9; the rest is averaged.

    Parameters
    ----------
    module
        The architecture, whose linear layers have a bias.
    clients
        Their state dicts.
    weights
        Examples of each.
    inputs
        Per client its training inputs.
    """
    grams = [_grams(module, client, own) for client, own in zip(clients, inputs, strict=True)]
    total = sum(weights)
    merged = {
        name: sum(
            (w / total * client[name].double() for w, client in zip(weights, clients, strict=True)), torch.zeros(())
        )
        for name in clients[0]
    }
    for layer in grams[0]:
        left = sum((own[layer] for own in grams), torch.zeros(()).double())
        stacked = [torch.cat([c[f"{layer}.weight"], c[f"{layer}.bias"][:, None]], 1).double() for c in clients]
        right = sum((own[layer] @ each.T for own, each in zip(grams, stacked, strict=True)), torch.zeros(()).double())
        regular = left + 1e-6 * left.diagonal().mean() * torch.eye(len(left), dtype=torch.float64)
        solution = torch.linalg.solve(regular, right).T
        merged[f"{layer}.weight"], merged[f"{layer}.bias"] = solution[:, :-1], solution[:, -1]
    return {name: value.to(clients[0][name].dtype) for name, value in merged.items()}


def _grams(module: nn.Module, client: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    module.load_state_dict(dict(client))
    module.eval()
    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):

            def hook(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                rows = functional.pad(args[0].flatten(0, -2).double(), (0, 1), value=1.0)
                gram = rows.T @ rows
                found[name] = _SHRINK * gram + (1 - _SHRINK) * torch.diag(gram.diagonal())

            handles.append(layer.register_forward_pre_hook(hook))
    with torch.no_grad():
        module(inputs)
    for handle in handles:
        handle.remove()
    return found
