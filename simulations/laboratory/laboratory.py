"""What every experiment works with: endpoints, data to judge by, and merging by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import c2m3_fl
from c2m3_fl.alignment import Alignment, align
from c2m3_fl.averaging import average
from c2m3_fl.matching import Matcher, resolve_matcher
from c2m3_fl.repair import repair
from c2m3_fl.symmetry import PermutationSpec
from clients.data import DataError, Split
from clients.models import build_model
from clients.training import evaluate
from simulations.laboratory.endpoints import Endpoint, EndpointConfig, EndpointStore, hardware
from simulations.laboratory.ledger import Ledger
from simulations.laboratory.scales import Scale

_SAMPLE_SEED = 11
# REPAIR needs one pass where all of its images are one batch; 1,024 fit wherever these networks do.
_CALIBRATION_BATCH = 1_024

_CODE = ("matching", "repair", "analysis", "symmetry/axes.py", "symmetry/groups.py", "alignment.py", "averaging.py")

Network = dict[str, Tensor]


@dataclass(frozen=True)
class Quality:
    """Loss in nats and accuracy in [0, 1], on the test set and on a part of the training set."""

    test_accuracy: float
    test_loss: float
    train_accuracy: float
    train_loss: float


@dataclass(frozen=True, eq=False)
class Merge:
    """Networks matched, mapped to the universe and averaged there."""

    alignment: Alignment
    mapped: list[Network]
    average: Network


class Bench:
    """One architecture on one data set: where networks are judged, matched and repaired.

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
        data = store.data(config)
        self.device = store.device
        self.module: nn.Module = build_model(
            config.model,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            width=config.width,
            norm=config.norm,
        ).to(memory_format=torch.channels_last)
        self.spec = PermutationSpec.from_module(self.module, data.test.select(torch.arange(2)).inputs())
        sizes = scale.sizes[config.model]
        self.test = self._images(data.test, torch.arange(len(data.test))[: sizes.test or None])
        # Judged on images that the endpoints were trained on; calibrated on others of them.
        seen = _shuffled(config, store)
        self.train = self._images(seen, torch.arange(len(seen))[: sizes.train or None])
        calibration, _ = self._images(seen, torch.arange(len(seen))[-sizes.calibration :])
        self.calibration = list(torch.split(calibration, _CALIBRATION_BATCH))

    def _images(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        chosen = split.select(indices)
        return chosen.inputs().to(self.device).contiguous(memory_format=torch.channels_last), chosen.labels

    def score(self, network: Mapping[str, Tensor], on: tuple[Tensor, Tensor], size: int = 0) -> tuple[float, float]:
        """Accuracy and loss of a network on images and labels, the first `size` of them where it is not 0."""
        self.module.load_state_dict(dict(network))
        result = evaluate(self.module, on[0][: size or None], on[1][: size or None], self.device)
        return result.accuracy, result.loss

    def quality(self, network: Mapping[str, Tensor]) -> Quality:
        """Judge a network."""
        return Quality(*self.score(network, self.test), *self.score(network, self.train))

    def merge(self, networks: Sequence[Network], matcher: str | Matcher) -> Merge:
        """Match, map and average."""
        alignment = align(networks, self.spec, matcher=matcher, device=self.device)
        mapped = alignment.apply(networks)
        return Merge(alignment, mapped, average(mapped))

    def repaired(
        self, merged: Network, endpoints: Sequence[Network], weights: Sequence[float] | None = None
    ) -> Network:
        """REPAIR as in the paper (A.4): endpoints as mapped, the output layer left as it is."""
        return repair(
            self.module,
            merged,
            endpoints,
            self.calibration,
            weights=weights,
            method="repair",
            output_layer=False,
            device=self.device,
        )


class Laboratory:
    """A scale, a store of endpoints and a folder of measurements.

    Parameters
    ----------
    scale
        The size of everything.
    store
        Trains endpoints or finds them.
    output
        Folder for the measurements, one file an experiment.
    networks
        Which of the scale's networks to work on; None for all that an experiment names.
    """

    def __init__(self, scale: Scale, store: EndpointStore, output: Path, networks: Sequence[str] | None = None) -> None:
        self.scale = scale
        self.store = store
        self.output = output
        self.networks = networks
        self._benches: dict[str, Bench] = {}

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.store.device

    def ledger(self, experiment: str) -> Ledger:
        """The measurements of an experiment."""
        return Ledger(self.output / f"{experiment}.jsonl", hardware(self.device))

    def chosen(self, networks: Sequence[str]) -> list[str]:
        """Those of an experiment's networks that this run works on.

        Where the command line names none, a network whose data are not there is left out, and this is said.
        """
        if self.networks is not None:
            return [name for name in networks if name in self.networks]
        return [name for name in networks if self._has_data(name)]

    def _has_data(self, network: str) -> bool:
        try:
            self.store.data(self.scale.networks[network])
        except DataError as error:
            print(f"{network} is left out: {error}")
            return False
        return True

    def bench(self, config: EndpointConfig) -> Bench:
        """The bench of a configuration, built once."""
        key = repr(config.with_seed(0))
        if key not in self._benches:
            self._benches[key] = Bench(config, self.store, self.scale)
        return self._benches[key]

    def endpoints(self, config: EndpointConfig, seeds: Sequence[int]) -> list[Endpoint]:
        """Networks from several seeds."""
        return [self.store.get(config.with_seed(seed)) for seed in seeds]

    def networks_of(self, config: EndpointConfig, seeds: Sequence[int]) -> list[Network]:
        """Their state dicts."""
        return [endpoint.state_dict for endpoint in self.endpoints(config, seeds)]

    def depends(self, config: EndpointConfig, seeds: Sequence[int], **more: Any) -> dict[str, Any]:
        """What a measurement on endpoints depends on, for `Ledger.measure`."""
        return {
            "endpoints": [self.store.path(config.with_seed(seed)).name for seed in seeds],
            "sizes": asdict(self.scale.sizes[config.model]),
            "code": code_fingerprint(),
            **more,
        }


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """A short name of the package's source: settings alone do not tell two versions of a matcher apart.

    Read once per process, when the first measurement asks for it.
    """
    root = Path(c2m3_fl.__file__).parent
    digest = hashlib.sha256()
    for part in _CODE:
        for path in sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def identify(matcher: str | Matcher) -> str:
    """A matcher with all its settings, in writing."""
    return repr(resolve_matcher(matcher))


def quality_values(quality: Quality) -> dict[str, float]:
    """Plain values for a record."""
    return asdict(quality)


def _shuffled(config: EndpointConfig, store: EndpointStore) -> Split:
    split = store.training(config)
    generator = torch.Generator().manual_seed(_SAMPLE_SEED)
    return split.select(torch.randperm(len(split), generator=generator))
