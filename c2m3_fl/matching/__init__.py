"""Matching: finding the permutations into the universe, one algorithm a file."""

from __future__ import annotations

from collections.abc import Callable

from c2m3_fl.errors import OptionError
from c2m3_fl.matching.activation_matching import ActivationMatcher, RecordedActivationMatcher
from c2m3_fl.matching.block_frank_wolfe import BlockFrankWolfe
from c2m3_fl.matching.camps import CampMoves
from c2m3_fl.matching.coordinate_ascent import CoordinateAscent
from c2m3_fl.matching.default import UniverseMatcher
from c2m3_fl.matching.frank_wolfe import FrankWolfe
from c2m3_fl.matching.git_rebasin import GitReBasin
from c2m3_fl.matching.identity_first import IdentityFirst
from c2m3_fl.matching.matcher import Identity, Iteration, Matcher, Matching
from c2m3_fl.matching.merge_many import MergeMany
from c2m3_fl.matching.pairwise_frank_wolfe import PairwiseFrankWolfe
from c2m3_fl.matching.problem import Block, MatchingProblem
from c2m3_fl.matching.reference import ToReference

MATCHERS: dict[str, Callable[[], Matcher]] = {
    "default": UniverseMatcher,
    "frank-wolfe": FrankWolfe,
    "block-frank-wolfe": BlockFrankWolfe,
    "coordinate-ascent": CoordinateAscent,
    "git-re-basin": GitReBasin,
    "merge-many": MergeMany,
    "pairwise-frank-wolfe": PairwiseFrankWolfe,
    "reference": ToReference,
    "identity": Identity,
}
"""The matchers by name, each with its default settings."""


def resolve_matcher(matcher: str | Matcher) -> Matcher:
    """A matcher by name, or the matcher itself.

    Raises
    ------
    OptionError
        If there is no matcher of that name, or the object has no method `match`.
    """
    if isinstance(matcher, str):
        if matcher not in MATCHERS:
            raise OptionError(f"there is no matcher {matcher!r}; the names are {', '.join(MATCHERS)}")
        return MATCHERS[matcher]()
    if not callable(getattr(matcher, "match", None)):
        raise OptionError(f"{matcher!r} is no matcher: it has no method match(problem)")
    return matcher


__all__ = [
    "MATCHERS",
    "ActivationMatcher",
    "Block",
    "BlockFrankWolfe",
    "CampMoves",
    "CoordinateAscent",
    "FrankWolfe",
    "GitReBasin",
    "Identity",
    "IdentityFirst",
    "Iteration",
    "Matcher",
    "Matching",
    "MatchingProblem",
    "MergeMany",
    "PairwiseFrankWolfe",
    "RecordedActivationMatcher",
    "ToReference",
    "UniverseMatcher",
    "resolve_matcher",
]
