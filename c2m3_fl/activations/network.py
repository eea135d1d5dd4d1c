"""A private copy of the user's network, into which state dicts are loaded and whose layers are watched."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.errors import RepairError
from c2m3_fl.activations.sites import Site, channel_axis, has_running_statistics, is_candidate

_log = logging.getLogger(__name__)

Hook = Callable[[nn.Module, Any, Any, Any], Any]
Architecture = nn.Module | Callable[[], nn.Module]
"""A module, or a function without arguments that builds one; only its architecture is used."""

_PROBE_EXAMPLES = 8
_HALVES = (torch.float16, torch.bfloat16)


class Network:
    """The copy on its device, in evaluation mode. Build it with `private_network`.

    A network in half precision is computed with in single precision: its state dicts are cast when they are loaded.

    Attributes
    ----------
    names
        The tensors that state dicts hold: all of the module's, or those that are federated. The others are the module's.
    dtype
        In which inputs of floating point are given.
    """

    def __init__(self, module: nn.Module, device: torch.device, names: Collection[str] | None = None) -> None:
        self.module = module.to(device).eval()
        if any(tensor.dtype in _HALVES for tensor in self.module.state_dict().values()):
            self.module.float()
        self.device = device
        self.names = frozenset(self.module.state_dict() if names is None else names)
        floats = (tensor.dtype for tensor in self.module.parameters() if tensor.is_floating_point())
        self.dtype = next(floats, None)

    def layer(self, site: Site) -> nn.Module:
        """Layer of a site."""
        return self.module.get_submodule(site.name)

    def check(self, state: Mapping[str, Tensor], what: str) -> None:
        """Raise unless the state dict fits the module; `what` names it in errors."""
        own = self.module.state_dict()
        if missing := sorted(self.names - state.keys()):
            raise RepairError(f"{what} lacks the module's key(s) {', '.join(missing)}")
        if unknown := sorted(state.keys() - self.names):
            raise RepairError(f"{what} has key(s) that the module does not know: {', '.join(unknown)}")
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.shape != own[key].shape:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
                raise RepairError(f"{what} has {key!r} with {found}; the module has shape {tuple(own[key].shape)}")

    def load(self, state: Mapping[str, Tensor], what: str) -> None:
        """Load a state dict after `check`."""
        self.check(state, what)
        self.module.load_state_dict(dict(state), strict=False)

    @contextmanager
    def watched(self, hooks: Mapping[str, Hook]) -> Iterator[None]:
        """Attach a forward hook to each layer named."""
        with ExitStack() as stack:
            for name, hook in hooks.items():
                layer = self.module.get_submodule(name)
                handle = layer.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def forward(self, index: int, batch: Batch, what: str, examples: int | None = None) -> Any:
        """Output for the batch of this index, or its first examples."""
        _seed(self.device)  # a forward pass that draws random numbers draws the same ones for every network
        arguments = batch.first(examples).to(self.device, self.dtype)
        try:
            return self.module(*arguments.args, **arguments.kwargs)
        except (RepairError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RepairError(
                f"{what}: the forward pass fails on calibration batch {index} ({batch}): {error}"
            ) from error

    def sites(self, batch: Batch) -> tuple[Site, ...]:
        """Sites of the network in the order in which the forward pass first calls them.

        A few examples of the batch are passed through whatever state is loaded. Candidates that cannot be sites are
        left as they are, and the log (level INFO) says which and why.
        """
        layers = {n: m for n, m in self.module.named_modules() if next(m.parameters(recurse=False), None) is not None}
        layers |= {n: m for n, m in self.module.named_modules() if is_candidate(m)}
        axes: dict[str, int | None] = {}
        calls: Counter[str] = Counter()
        outputs: dict[int, tuple[str, Any]] = {}  # they are kept, for no other tensor to get their place
        normalised: set[str] = set()
        last = ""

        def watch(name: str) -> Hook:
            def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                nonlocal last
                last = name
                calls[name] += 1
                outputs[id(output)] = name, output
                if has_running_statistics(layer) and args and id(args[0]) in outputs:
                    normalised.add(outputs[id(args[0])][0])
                if calls[name] == 1:
                    axes[name] = channel_axis(layer, args, kwargs, output) if is_candidate(layer) else None

            return hook

        with self.watched({name: watch(name) for name in layers}):
            self.forward(0, batch, "the network", _PROBE_EXAMPLES)
        excluded = self.excluded()
        found = []
        for name, axis in axes.items():
            layer = layers[name]
            if not is_candidate(layer):
                continue
            if axis is None:
                excluded[name] = f"no correction folds into the parameters of a {type(layer).__name__}"
            if name not in excluded:
                assert axis is not None
                found.append(
                    Site.of(name, layer, axis, calls[name], is_output=name == last, normalised=name in normalised)
                )
        for name, layer in layers.items():
            if is_candidate(layer) and name not in axes:
                excluded[name] = "the forward pass does not call it"
        for name, reason in excluded.items():
            _log.info("repair leaves the layer %r as it is: %s", name, reason)
        return tuple(found)

    def excluded(self) -> dict[str, str]:
        """Layers that could be sites but for others that share their parameters, or for frozen ones; with the reason."""
        owners = Counter(id(p) for m in self.module.modules() for p in m.parameters(recurse=False))
        any_trainable = any(p.requires_grad for p in self.module.parameters())
        excluded = {}
        for name, layer in self.module.named_modules():
            if not is_candidate(layer):
                continue
            own = list(layer.parameters(recurse=False))
            if any(owners[id(p)] > 1 for p in own):
                excluded[name] = "another layer shares its parameters"
            # a module without a single trainable parameter is a copy for inference, and says nothing about training
            elif any_trainable and not all(p.requires_grad for p in own):
                excluded[name] = "its parameters are frozen"
        return excluded

    def export(self, like: Mapping[str, Tensor], changed: Sequence[nn.Module]) -> dict[str, Tensor]:
        """State dict like the one given, with the tensors of the changed layers taken from the network."""
        ids = {id(t) for m in changed for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
        own = self.module.state_dict(keep_vars=True)
        return {
            key: own[key].detach().to(device=value.device, dtype=value.dtype, copy=True)
            if id(own[key]) in ids
            else value.detach().clone()
            for key, value in like.items()
        }


@contextmanager
def private_network(
    module: Architecture, device: torch.device, names: Collection[str] | None = None
) -> Iterator[Network]:
    """Copy the user's network; leave the module, the gradients' mode and the random state as they were."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        yield Network(_copy(module), device, names)


def _seed(device: torch.device) -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed every GPU
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


def _copy(module: Architecture) -> nn.Module:
    if not isinstance(module, nn.Module):
        built = module() if callable(module) else None
        if not isinstance(built, nn.Module):
            raise RepairError("`module` must be an nn.Module or a function without arguments that returns one")
        return built
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise RepairError(
            f"the module {type(module).__name__} cannot be copied ({error}); pass a function that builds it instead"
        ) from error
