"""The matchers that are compared, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from c2m3_fl.matching import (
    BlockFrankWolfe,
    CoordinateAscent,
    FrankWolfe,
    GitReBasin,
    Identity,
    Matcher,
    Matching,
    MatchingProblem,
    MergeMany,
    PairwiseFrankWolfe,
    UniverseMatcher,
)
from simulations.experiments.paper.pair_sum import PairSumFrankWolfe


@dataclass(frozen=True)
class ThenAscent:
    """A matcher, and coordinate ascent from its result."""

    first: Matcher

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        matching = self.first.match(problem)
        ascended = CoordinateAscent().improve(problem, matching.permutations)
        return Matching(ascended.permutations, matching.iterations + ascended.iterations)


PAIR_SUM = "pair-sum"
MATCHERS: Mapping[str, Matcher] = {
    "identity": Identity(),
    "default": UniverseMatcher(),
    "effort-0": UniverseMatcher(effort=0),
    "effort-2": UniverseMatcher(effort=2),
    "effort-8": UniverseMatcher(effort=8),
    "coordinate-ascent": CoordinateAscent(),
    "merge-many": MergeMany(),
    "git-re-basin": GitReBasin(),
    "pairwise-frank-wolfe": PairwiseFrankWolfe(),
    "frank-wolfe": FrankWolfe(),
    PAIR_SUM: PairSumFrankWolfe(2),
}
"""What is compared on every network."""
VARIANTS: Mapping[str, Matcher] = {
    "frank-wolfe-20-ascent": ThenAscent(FrankWolfe(max_iterations=20)),
    "frank-wolfe-80-ascent": ThenAscent(FrankWolfe(max_iterations=80)),
    "barycentre-frank-wolfe-ascent": ThenAscent(FrankWolfe(start="barycentre")),
    "sinkhorn-frank-wolfe-ascent": ThenAscent(FrankWolfe(start="sinkhorn")),
    "blocks-4-ascent": ThenAscent(BlockFrankWolfe(max_passes=4)),
    "blocks-10-ascent": ThenAscent(BlockFrankWolfe(max_passes=10)),
    "blocks-40-ascent": ThenAscent(BlockFrankWolfe(max_passes=40)),
    "effort-1": UniverseMatcher(effort=1),
    "effort-16": UniverseMatcher(effort=16),
}
"""Stages and settings of the study of variants."""
