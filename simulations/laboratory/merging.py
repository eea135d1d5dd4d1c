"""The methods that experiments compare, and one measurement: networks merged and judged, before and after REPAIR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from c2m3_fl.matching import Matcher, resolve_matcher
from simulations.laboratory.endpoints import EndpointConfig
from simulations.laboratory.laboratory import Bench, Laboratory, Network, identify, quality_values
from simulations.laboratory.ledger import Ledger, Record

METHODS: Mapping[str, str] = {"naive": "identity", "merge-many": "merge-many", "c2m3": "default"}
"""Per method of the paper's Table 1, the name of the matcher here."""


def merged_values(bench: Bench, networks: Sequence[Network], matcher: str | Matcher) -> dict[str, Any]:
    """Merge networks and judge the result."""
    merge = bench.merge(networks, matcher)
    repaired = bench.repaired(merge.average, merge.mapped)
    return {
        "objective": merge.alignment.objective,
        "objective_before": merge.alignment.objective_before,
        "matching_seconds": merge.alignment.seconds,
        "average": quality_values(bench.quality(merge.average)),
        "repaired": quality_values(bench.quality(repaired)),
    }


def measure_merged(
    laboratory: Laboratory,
    ledger: Ledger,
    config: EndpointConfig,
    seeds: Sequence[int],
    matcher: str | Matcher,
    **about: Any,
) -> Record:
    """`merged_values` of the endpoints of some seeds, written down."""
    return ledger.measure(
        about,
        laboratory.depends(config, seeds, matcher=identify(resolve_matcher(matcher))),
        lambda: merged_values(laboratory.bench(config), laboratory.networks_of(config, seeds), matcher),
    )


def measure_endpoint(laboratory: Laboratory, ledger: Ledger, config: EndpointConfig, seed: int, network: str) -> Record:
    """The quality of one endpoint itself, written down."""
    return ledger.measure(
        {"network": network, "method": "endpoint", "seed": seed},
        laboratory.depends(config, [seed]),
        lambda: quality_values(laboratory.bench(config).quality(laboratory.networks_of(config, [seed])[0])),
    )
