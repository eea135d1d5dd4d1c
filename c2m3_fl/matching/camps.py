"""Camp moves: clients that agree among themselves, but not with the others, are moved together.

Where some clients have settled in one arrangement of the universe and others in another, no single client gains by
changing sides. The camps show in the similarities of the mapped clients; aligning the two camps' sums is a problem of two
clients, and its solution moves a whole camp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from c2m3_fl.matching.block_frank_wolfe import BlockFrankWolfe
from c2m3_fl.matching.coordinate_ascent import CoordinateAscent
from c2m3_fl.matching.matcher import Iteration, Matching, objective_of
from c2m3_fl.matching.problem import Block, MatchingProblem


@dataclass(frozen=True)
class CampMoves:
    """Split the clients in two camps, align the camps with each other, and go on while the objective grows.

    Parameters
    ----------
    start
        Aligns the two camps.
    finish
        Takes over after a camp has moved.
    max_moves
        Upper bound on the number of moves.
    tolerance
        A move must gain more than this share of the objective's absolute value.
    """

    start: BlockFrankWolfe = field(default_factory=BlockFrankWolfe)
    finish: CoordinateAscent = field(default_factory=CoordinateAscent)
    max_moves: int = 20
    tolerance: float = 1e-6

    def improve(
        self, problem: MatchingProblem, permutations: Sequence[Tensor], objective: float | None = None
    ) -> Matching:
        """Ascend from given permutations (per group, shape ``(clients, size)``), and their objective if it is known."""
        matching = Matching(list(permutations), (), problem.objective(permutations) if objective is None else objective)
        iterations: list[Iteration] = []
        for _ in range(self.max_moves):
            moved = self._moved(problem, matching)
            if moved is None:
                break
            matching = self.finish.improve(problem, moved.permutations, moved.objective)
            iterations.append(Iteration("camp-moves", matching.iterations[0].objective))
            iterations.extend(matching.iterations[1:])
        return replace(matching, iterations=tuple(iterations))

    def _moved(self, problem: MatchingProblem, matching: Matching) -> Matching | None:
        """The matching with a camp moved, or None if that gains nothing."""
        images = problem.mapped(matching.permutations)
        for camp in camps(images, problem.clients):
            pair = _pair(problem, images, camp)
            before = pair.identity_objective
            aligned = self.finish.improve(pair, self.start.match(pair).permutations)
            # All that the camps' sums gain with each other, the clients gain: within a camp nothing changes.
            gain = objective_of(pair, aligned) - before
            if gain <= self.tolerance * abs(before):
                continue
            moved = [orders.clone() for orders in matching.permutations]
            for orders, (rest_order, camp_order) in zip(moved, aligned.permutations, strict=True):
                # Relative to the rest, which stays where it is.
                orders[camp] = orders[camp][:, camp_order[rest_order.argsort()]]
            return Matching(moved, (), objective_of(problem, matching) + gain)
        return None


def camps(images: Sequence[Tensor], clients: int) -> Iterator[Tensor]:
    """The smaller of two camps by each of the leading directions in which the mapped clients differ.

    Parameters
    ----------
    images
        The mapped clients, block by block, of shape ``(clients, ...)``.
    clients
        Their number.

    Yields
    ------
    Tensor
        Boolean, of shape ``(clients,)``: True in the smaller camp. Of two clients nothing is yielded.
    """
    if clients < 3:
        return
    gram = torch.zeros(clients, clients, dtype=torch.float64)
    for image in images:
        flat = image.flatten(1)
        gram += (flat @ flat.T).double().cpu()
    length = gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    cosine = gram / (length[:, None] * length)
    centred = cosine - cosine.mean(0) - cosine.mean(1)[:, None] + cosine.mean()
    _, directions = torch.linalg.eigh(centred)
    for direction in directions.T.flip(0)[:1]:
        side = direction > 0
        if 2 * int(side.sum()) > clients:
            side = ~side
        if side.any():
            yield side


def _pair(problem: MatchingProblem, images: Sequence[Tensor], camp: Tensor) -> MatchingProblem:
    """The problem of two clients: the sum of the rest, and the sum of the camp."""
    weights = torch.tensor(problem.weights, dtype=problem.dtype)
    shares = torch.stack([torch.where(camp, 0.0, weights), torch.where(camp, weights, 0.0)]).to(problem.device)
    blocks = tuple(
        Block(block.groups, torch.mm(shares, image.flatten(1)).view(2, *image.shape[1:]))
        for block, image in zip(problem.blocks, images, strict=True)
    )
    return replace(problem, blocks=blocks, weights=(1.0, 1.0), constant=0.0, state_dicts=())
