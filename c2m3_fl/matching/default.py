"""The default matcher: block-coordinate Frank-Wolfe, rounded, then coordinate ascent, then camp moves."""

from __future__ import annotations

from dataclasses import dataclass

from c2m3_fl.matching.block_frank_wolfe import BlockFrankWolfe
from c2m3_fl.matching.camps import CampMoves
from c2m3_fl.matching.coordinate_ascent import CoordinateAscent
from c2m3_fl.matching.matcher import Matching
from c2m3_fl.matching.problem import MatchingProblem


@dataclass(frozen=True)
class UniverseMatcher:
    """Block-coordinate Frank-Wolfe for the global view, coordinate ascent for the end game, camp moves to get unstuck.

    Parameters
    ----------
    effort
        Passes of block-coordinate Frank-Wolfe before the maps are rounded: more take longer and find a better objective.
    """

    effort: int = 10

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        start, finish = BlockFrankWolfe(max_passes=self.effort), CoordinateAscent()
        begun = start.match(problem)
        ascended = finish.improve(problem, begun.permutations)
        moved = CampMoves(finish=finish).improve(problem, ascended.permutations)
        return Matching(moved.permutations, begun.iterations + ascended.iterations + moved.iterations)
