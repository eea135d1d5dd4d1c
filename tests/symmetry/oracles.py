"""Specs written by hand after C2M3, appendix A.6, for the networks of `clients.models`: what tracing must reproduce."""

from __future__ import annotations

from collections.abc import Sequence

from c2m3_fl.symmetry.spec import PermutationSpec

Written = dict[str, tuple[str | int, ...]]


def _layer(name: str, out: str | int, *inside: str | int, bias: bool = True) -> Written:
    return {f"{name}.weight": (out, *inside)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, channels: str, kind: str) -> tuple[Written, list[str]]:
    if kind == "layer":
        return _layer(f"{name}.norm", channels), []
    statistics: Written = {
        f"{name}.running_mean": (channels,),
        f"{name}.running_var": (channels,),
        f"{name}.num_batches_tracked": (),
    }
    return _layer(name, channels) | statistics, list(statistics)


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> PermutationSpec:
    """One group for each hidden layer."""
    groups = {f"h{i}": size for i, size in enumerate(hidden)}
    tensors: Written = {}
    previous: str | int = inputs
    for i, group in enumerate(groups):
        tensors |= _layer(f"hidden.{i}", group, previous)
        previous = group
    tensors |= _layer("output", classes, previous)
    return PermutationSpec.from_axes(groups, tensors)


def resnet20(channels: int, classes: int, width: float, norm: str) -> PermutationSpec:
    """One group for each stage's residual stream, one inside of each block."""
    sizes = [round(c * width) for c in (16, 32, 64)]
    groups = {f"stage{i}": size for i, size in enumerate(sizes)}
    groups |= {f"block{b}": sizes[b // 3] for b in range(9)}
    norms, carried = _norm("norm", "stage0", norm)
    tensors = _layer("conv", "stage0", channels, 3, 3, bias=False) | norms
    for b in range(9):
        path, inside, out = f"blocks.{b}", f"block{b}", f"stage{b // 3}"
        before = f"stage{(b - 1) // 3}" if b else "stage0"
        convolutions = [("conv1", "norm1", inside, before, 3), ("conv2", "norm2", out, inside, 3)]
        if before != out:
            convolutions.append(("shortcut.0", "shortcut.1", out, before, 1))
        for conv, norm_name, to, source, kernel in convolutions:
            norms, more = _norm(f"{path}.{norm_name}", to, norm)
            tensors |= _layer(f"{path}.{conv}", to, source, kernel, kernel, bias=False) | norms
            carried += more
    tensors |= _layer("output", classes, "stage2")
    return PermutationSpec.from_axes(groups, tensors, carried=carried)


def vgg16(channels: int, classes: int, width: float, norm: str, area: int) -> PermutationSpec:
    """One group for each hidden layer; `area` positions of each channel are flattened in front of the classifier."""
    groups: dict[str, int] = {}
    tensors: Written = {}
    carried: list[str] = []
    previous: str | int = channels
    place = 0
    for repeats, size in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(repeats):
            group = f"conv{len(groups)}"
            groups[group] = round(size * width)
            norms, more = _norm(f"features.{place + 1}", group, norm)
            tensors |= _layer(f"features.{place}", group, previous, 3, 3) | norms
            carried += more
            previous = group
            place += 3
        place += 1
    groups |= {"hidden0": round(512 * width), "hidden1": round(512 * width)}
    tensors |= _layer("classifier.0", "hidden0", f"{previous}*{area}" if area > 1 else previous)
    tensors |= _layer("classifier.2", "hidden1", "hidden0") | _layer("classifier.4", classes, "hidden1")
    return PermutationSpec.from_axes(groups, tensors, carried=carried)


def renamed(spec: PermutationSpec) -> PermutationSpec:
    """The spec with its groups named by the order in which its tensors, sorted by name, carry them."""
    order: dict[str, str] = {}
    for name in sorted(spec.tensors):
        for axis in spec.tensors[name]:
            for segment in axis.segments:
                for factor in segment.factors:
                    if factor.group is not None:
                        order.setdefault(factor.group, f"g{len(order)}")
    return PermutationSpec.from_axes(
        {order[group]: size for group, size in spec.groups.items()},
        {
            name: tuple(
                " + ".join(
                    "*".join(order[f.group] if f.group else str(f.size) for f in s.factors) for s in axis.segments
                )
                for axis in axes
            )
            for name, axes in spec.tensors.items()
        },
        carried=spec.carried,
    )
