"""The default matcher: block-coordinate Frank-Wolfe with softened restarts, coordinate ascent, camp moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from c2m3_fl.matching.block_frank_wolfe import BlockFrankWolfe, SoftClients
from c2m3_fl.matching.camps import CampMoves
from c2m3_fl.matching.coordinate_ascent import CoordinateAscent
from c2m3_fl.matching.matcher import Matching, objective_of
from c2m3_fl.matching.merge_many import MergeMany
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
    The order of the stages and their settings are the outcome of a study, see `docs/matching.md`. Small networks, where a
    start costs little, get a second one: the result of `MergeMany` with its default seed, restarted as often. Their
    objective is never below that result's, unless `effort` is 0. They are matched on the CPU, whatever the device of the
    problem: another device would spend the time waiting for the next operation.

    Where the device has instructions that multiply in bfloat16, large groups are multiplied in it to find where to go. Which
    restart is kept, and which moves the coordinate ascent makes, is decided in full precision.

    Memory, in multiples of the clients' own size: that of `BlockFrankWolfe`.
    """

    effort: int = 4

    def match(self, problem: MatchingProblem) -> Matching:
        """Solve a matching problem."""
        small = max(problem.group_sizes, default=0) < _SMALL_SIZE
        problem = problem.on(torch.device("cpu")) if small else problem
        soft = SoftClients(problem, coarse=True)
        starts = [_FRANK_WOLFE.ascend(soft, problem.identity())]
        if self.effort and small:
            starts.append(MergeMany().match(problem))
        results = [self._restarted(problem, soft, start) for start in starts]
        matching = max(results, key=lambda result: objective_of(problem, result))
        iterations = tuple(iteration for result in results for iteration in result.iterations)
        finish = CoordinateAscent(least_gain=_LEAST_GAIN, coarse=True)
        for stage in (finish, CampMoves(BlockFrankWolfe(coarse=True), finish)):
            matching = stage.improve(problem, matching.permutations, matching.objective)
            iterations += matching.iterations
        return replace(matching, iterations=iterations)

    def _restarted(self, problem: MatchingProblem, soft: SoftClients, start: Matching) -> Matching:
        """The best of a matching and its restarts."""
        best, iterations = replace(start, objective=objective_of(problem, start)), start.iterations
        for softness in np.linspace(*_SOFTNESS, self.effort):
            restarted = _FRANK_WOLFE.ascend(soft, best.permutations, float(softness))
            iterations += restarted.iterations
            objective = objective_of(problem, restarted)
            if objective > objective_of(problem, best):
                best = replace(restarted, objective=objective)
        return replace(best, iterations=iterations)


_FRANK_WOLFE = BlockFrankWolfe(max_passes=4, coarse=True)
# With 20 clients, sweeps to a local optimum take twice as long as all the rest, and add 0.06 % to the objective.
_LEAST_GAIN = 5e-5
_SOFTNESS = (0.7, 0.3)
_SMALL_SIZE = 128  # of the largest group; below it assignments take microseconds
