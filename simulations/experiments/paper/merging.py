"""Measurements that several experiments make: networks merged and judged, and the networks themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from c2m3_fl.matching import Matcher
from simulations.laboratory.endpoints import EndpointConfig
from simulations.laboratory.laboratory import STAGES, Group, Laboratory
from simulations.laboratory.ledger import Cell, Record


def merged(group: Group, matcher: str | Matcher) -> Mapping[str, Any]:
    """All networks of a group merged and judged, before and after REPAIR."""
    return group.merged_values(matcher)


def endpoint_cells(
    laboratory: Laboratory, network: str, seeds: Sequence[int], config: EndpointConfig | None = None
) -> Iterator[Cell]:
    """The quality of each endpoint itself."""
    for seed in seeds:
        yield laboratory.cell(network, [seed], {"method": "endpoint", "seed": seed}, _itself, config=config)


def stages_of(records: Sequence[Record]) -> dict[str, str]:
    """The stages of `STAGES` that all merged networks among the records were judged at, and how they are written."""
    merges = [record.values for record in records if "average" in record.values]
    return {stage: words for stage, words in STAGES.items() if all(stage in values for values in merges)}


def _itself(group: Group) -> Mapping[str, Any]:
    return group.bench.quality(group.networks[0])
