"""The default matcher: a short Frank-Wolfe run, rounded, then coordinate ascent."""

from __future__ import annotations

from dataclasses import dataclass, field

from c2m3_fl.matching.coordinate_ascent import CoordinateAscent
from c2m3_fl.matching.frank_wolfe import FrankWolfe
from c2m3_fl.matching.matcher import Matching
from c2m3_fl.matching.problem import MatchingProblem


@dataclass(frozen=True)
class UniverseMatcher:
    """Frank-Wolfe for the global view, coordinate ascent for the end game."""

    start: FrankWolfe = field(default_factory=lambda: FrankWolfe(max_iterations=20))
    finish: CoordinateAscent = field(default_factory=CoordinateAscent)

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        begun = self.start.match(problem)
        finished = self.finish.improve(problem, begun.permutations)
        return Matching(finished.permutations, begun.iterations + finished.iterations)
