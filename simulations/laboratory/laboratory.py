"""What every experiment works with: endpoints, data to judge by, and merging by name."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.matching import Matcher, resolve_matcher
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import PermutationSpec
from clients.data import DataError, Split
from clients.training import evaluate
from simulations.laboratory.endpoints import EndpointConfig, EndpointStore, fingerprint
from simulations.laboratory.ledger import Cell
from simulations.laboratory.scales import Scale
from simulations.laboratory.staleness import code_fingerprint

_SAMPLE_SEED = 11
# REPAIR needs one pass where all of its images are one batch; 1,024 fit wherever these networks do.
_CALIBRATION_BATCH = 1_024

METHODS: Mapping[str, str] = {"naive": "identity", "merge-many": "merge-many", "c2m3": "default"}
"""Per method of the paper's Table 1, the name of the matcher here."""

STAGES: Mapping[str, str] = {"average": "", "repaired": " + REPAIR", "refitted": " + least squares"}
"""What becomes of matched networks, and how it is written behind a method's name."""

Network = dict[str, Tensor]
Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Quality:
    """Loss in nats and accuracy in [0, 1], on the test set and on a part of the training set."""

    test_accuracy: float
    test_loss: float
    train_accuracy: float
    train_loss: float


class Bench:
    """One architecture on one data set: where networks are judged and repaired.

    Parameters
    ----------
    config
        Of the endpoints; their seed does not matter here.
    store
        Knows the data.
    scale
        Says how many images to use.
    """

    def __init__(self, config: EndpointConfig, store: EndpointStore, scale: Scale) -> None:
        data = store.data(config.dataset)
        self.device = store.device
        self.module: nn.Module = config.build(data).to(memory_format=torch.channels_last)
        self.spec = PermutationSpec.from_module(self.module, data.test.select(torch.arange(2)).inputs())
        sizes = scale.sizes_of(config)
        self.test = self._images(data.test, torch.arange(len(data.test))[: sizes.test or None])
        # Judged on images that the endpoints were trained on; calibrated on others of them.
        seen = _shuffled(store.training(config))
        self.train = self._images(seen, torch.arange(len(seen))[: sizes.train or None])
        calibration, _ = self._images(seen, torch.arange(len(seen))[-sizes.calibration :])
        self.calibration = list(torch.split(calibration, _CALIBRATION_BATCH))

    def _images(self, split: Split, indices: Tensor) -> Images:
        chosen = split.select(indices)
        return chosen.inputs().to(self.device).contiguous(memory_format=torch.channels_last), chosen.labels

    def score(self, network: Mapping[str, Tensor], on: Images | None = None, size: int = 0) -> tuple[float, float]:
        """Accuracy and loss of a network on images and labels (the test set), the first `size` of them if not 0."""
        images, labels = on or self.test
        self.module.load_state_dict(dict(network))
        result = evaluate(self.module, images[: size or None], labels[: size or None], self.device)
        return result.accuracy, result.loss

    def quality(self, network: Mapping[str, Tensor]) -> dict[str, float]:
        """The fields of `Quality` of a network."""
        return asdict(Quality(*self.score(network, self.test), *self.score(network, self.train)))

    def repaired(
        self,
        merged: Network,
        endpoints: Sequence[Network],
        weights: Sequence[float] | None = None,
        method: Literal["repair", "least-squares"] = "repair",
    ) -> Network:
        """REPAIR as in the paper (A.4): endpoints as mapped, the output layer left as it is; or least squares."""
        return repair(
            self.module,
            merged,
            endpoints,
            self.calibration,
            weights=weights,
            method=method,
            output_layer=False,
            device=self.device,
        )

    def stages(self, mapped: Sequence[Network], wanted: Container[str] = STAGES) -> dict[str, dict[str, float]]:
        """Quality of the average of mapped networks, by stage of `STAGES`, or by those that are wanted."""
        merged = average(mapped)
        stages: dict[str, Callable[[], Network]] = {
            "average": lambda: merged,
            "repaired": lambda: self.repaired(merged, mapped),
            "refitted": lambda: self.repaired(merged, mapped, method="least-squares"),
        }
        return {stage: self.quality(network()) for stage, network in stages.items() if stage in wanted}


@dataclass(frozen=True, eq=False)
class Merge:
    """Networks matched and mapped to the universe."""

    alignment: Alignment
    mapped: list[Network]


class Group:
    """Networks of one configuration from several seeds, with the bench to judge them on.

    Parameters
    ----------
    bench
        See `Bench`.
    networks
        The networks, in the order of their seeds.
    """

    def __init__(self, bench: Bench, networks: Sequence[Network]) -> None:
        self.bench = bench
        self.networks = list(networks)
        self._merge_once = lru_cache(maxsize=8)(self._merge)

    def merge(self, matcher: str | Matcher, members: Sequence[int] = ()) -> Merge:
        """Match some of the networks, or all, and map them; the latest merges are remembered."""
        once: Callable[..., Merge] = self._merge_once if _is_plain(matcher) else self._merge
        return once(matcher, tuple(members))

    def _merge(self, matcher: Any, members: tuple[int, ...]) -> Merge:
        chosen = [self.networks[member] for member in members] if members else self.networks
        alignment = align(chosen, self.bench.spec, matcher=matcher, device=self.bench.device)
        return Merge(alignment, alignment.apply(chosen))

    def merged_values(self, matcher: str | Matcher) -> dict[str, Any]:
        """Merge all networks and judge the result."""
        merge = self.merge(matcher)
        return {
            "objective": merge.alignment.objective,
            "objective_before": merge.alignment.objective_before,
            "matching_seconds": merge.alignment.seconds,
            **self.bench.stages(merge.mapped),
        }


Measure = Callable[..., Mapping[str, Any]]


class Laboratory:
    """A scale and a store of endpoints.

    Parameters
    ----------
    scale
        The size of everything.
    store
        Trains endpoints or finds them.
    """

    def __init__(self, scale: Scale, store: EndpointStore) -> None:
        self.scale = scale
        self.store = store
        self.bench = lru_cache(maxsize=4)(self._bench)
        self.group = lru_cache(maxsize=4)(self._group)
        self._contents: dict[str, str | DataError] = {}

    def cell(
        self,
        network: str,
        seeds: Sequence[int],
        about: Mapping[str, Any],
        measure: Measure,
        *,
        config: EndpointConfig | None = None,
        **options: Any,
    ) -> Cell:
        """A measurement on endpoints.

        Parameters
        ----------
        network
            Name of the scale's network, by which tables know it.
        seeds
            Of the endpoints.
        about
            See `Cell`; the network is added.
        measure
            Takes the `Group` of endpoints, and the options.
        config
            The endpoints where they are not the scale's own of that name.
        options
            Matchers and plain values; the result depends on them.
        """
        chosen = config or self.scale.networks[network]
        depends = {
            "networks": chosen.about,
            "seeds": list(seeds),
            "sizes": asdict(self.scale.sizes_of(chosen)),
            "code": code_fingerprint(measure.__module__),
            **{k: identify(v) if k == "matcher" else v for k, v in options.items()},
        }
        return Cell(
            {"network": network, **about},
            depends,
            (chosen.dataset,),
            lambda: measure(self.group(chosen, tuple(seeds)), **options),
        )

    def depends(self, cell: Cell) -> dict[str, Any]:
        """What a cell depends on, with the content of its data as far as they are there."""
        contents = {name: self.content(name) for name in cell.needs}
        return {**cell.depends, "data": contents} if None not in contents.values() else dict(cell.depends)

    def content(self, dataset: str) -> str | None:
        """A short name of what a data set holds; None where it is not there."""
        content = self._content(dataset)
        return None if isinstance(content, DataError) else content

    def missing(self, cell: Cell) -> list[str]:
        """Why a cell cannot be measured here: a sentence for each data set that is not there."""
        return [str(found) for name in cell.needs if isinstance(found := self._content(name), DataError)]

    def _content(self, dataset: str) -> str | DataError:
        if dataset not in self._contents:
            try:
                data = self.store.data(dataset)
                self._contents[dataset] = f"{fingerprint(data.train)} {fingerprint(data.test)}"
            except DataError as error:
                self._contents[dataset] = error
        return self._contents[dataset]

    def _bench(self, config: EndpointConfig) -> Bench:
        return Bench(config, self.store, self.scale)

    def _group(self, config: EndpointConfig, seeds: tuple[int, ...]) -> Group:
        networks = [self.store.get(config.with_seed(seed)).state_dict for seed in seeds]
        return Group(self.bench(config.with_seed(0)), networks)


def _is_plain(matcher: str | Matcher) -> bool:
    """Whether a matcher is a name or a record of plain settings: one that holds tensors cannot be compared."""
    try:
        hash(matcher)
    except TypeError:
        return False
    return True


def identify(matcher: str | Matcher) -> str:
    """A matcher with all its settings, in writing."""
    return repr(resolve_matcher(matcher))


def _shuffled(split: Split) -> Split:
    generator = torch.Generator().manual_seed(_SAMPLE_SEED)
    return split.select(torch.randperm(len(split), generator=generator))
