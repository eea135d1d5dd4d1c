"""The default matcher: block-coordinate Frank-Wolfe with softened restarts, coordinate ascent, camp moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
        Number of restarts of block-coordinate Frank-Wolfe from its best result, mixed with the barycentre by less and
        less each time. More restarts take longer, in proportion, and find a better objective; 0 is the fastest.

    Notes
    -----
    The order of the stages and their settings are the outcome of a study, see `docs/matching.md`.

    Memory, in multiples of the clients' own size: that of `BlockFrankWolfe`.
    """

    effort: int = 4

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        start, finish = BlockFrankWolfe(max_passes=_PASSES), CoordinateAscent(least_gain=_LEAST_GAIN)
        matching = start.match(problem)
        iterations, best = matching.iterations, problem.objective(matching.permutations)
        for softness in np.linspace(*_SOFTNESS, self.effort):
            restarted = start.restart(problem, matching.permutations, float(softness))
            iterations += restarted.iterations
            if (objective := problem.objective(restarted.permutations)) > best:
                matching, best = restarted, objective
        for stage in (finish, CampMoves(finish=finish)):
            matching = stage.improve(problem, matching.permutations)
            iterations += matching.iterations
        return Matching(matching.permutations, iterations)


_PASSES = 4
# With 20 clients, sweeps to a local optimum take twice as long as all the rest, and add 0.06 % to the objective.
_LEAST_GAIN = 5e-5
_SOFTNESS = (0.7, 0.3)
