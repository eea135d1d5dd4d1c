r"""A cheap proof that the identity is optimal: the clients' neurons stay nearer to their own mean than to another's.

Take one group. Let :math:`X_{p,i}` be what client p has of neuron i (in all blocks that carry the group),
:math:`w_p` the weights, W their sum, :math:`M_i = \sum_p w_p X_{p,i} / W` the mean, :math:`d_{p,i} = \|X_{p,i} - M_i\|`,
:math:`\delta_{ij} = \|M_i - M_j\|` and :math:`\theta_p = w_p / (W - w_p)`.

**Claim.** If :math:`\delta_{ij} \ge (1 + 2\theta_p) d_{p,i} + d_{p,j}` for all :math:`i \ne j`, no permutation of client p's
neurons in this group gains.

**Proof.** The others' mean is :math:`R_i = (W M_i - w_p X_{p,i}) / (W - w_p) = M_i - \theta_p (X_{p,i} - M_i)`, so
:math:`\|R_i - X_{p,i}\| = (1 + \theta_p) d_{p,i}`, and by the triangle inequality

.. math:: \|R_i - X_{p,j}\| \ge \delta_{ij} - \theta_p d_{p,i} - d_{p,j} \ge (1 + \theta_p) d_{p,i} = \|R_i - X_{p,i}\|.

For a permutation :math:`\pi` the squares of these, summed over i, give
:math:`\sum_i \|R_i - X_{p,\pi(i)}\|^2 \ge \sum_i \|R_i - X_{p,i}\|^2`. On both sides :math:`\sum_i \|R_i\|^2` and, since
:math:`\pi` is a permutation, :math:`\sum_i \|X_{p,i}\|^2` are the same; what is left is
:math:`\sum_i \langle R_i, X_{p,\pi(i)} \rangle \le \sum_i \langle R_i, X_{p,i} \rangle`: the objective, which is
linear in this permutation with the gradient :math:`2 w_p (W - w_p) \langle R_i, X_{p,j} \rangle`, does not grow. ∎

The distances come from one matrix product a group, whatever the number of clients; the deviations from one pass over
the clients. A neuron's largest :math:`(1 + 2\theta_p) d_{p,i}` and largest :math:`d_{p,j}` over the clients serve for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2m3_fl.matching.problem import MatchingProblem, contract


def certified_groups(problem: MatchingProblem, sums: Sequence[Tensor]) -> list[bool]:
    """For which groups the identity is proved optimal for every client, all else being as it is.

    Parameters
    ----------
    problem
        Two clients or more. No group acts twice on a block.
    sums
        Per block, the weighted sum over clients, shape ``(*group sizes, rest)``.

    Returns
    -------
    list of bool
        One per group. False says that this proof does not hold, not that a permutation gains.
    """
    total = sum(problem.weights)
    means = [block_sum / total for block_sum in sums]
    near, far = _deviations(problem, means)
    found = [_separated(_gram(problem, group, means), near[group], far[group]) for group in range(len(near))]
    return torch.stack(found).tolist() if found else []


def _gram(problem: MatchingProblem, group: int, means: Sequence[Tensor]) -> Tensor:
    """Inner products of a group's mean neurons, shape ``(size, size)``."""
    shares = [
        contract(means[number][None], means[number][None], axis)[0]
        for number, block in enumerate(problem.blocks)
        for axis in block.axes_of(group)
    ]
    return sum(shares[1:], shares[0])


def _deviations(problem: MatchingProblem, means: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Per group and neuron, the largest (1 + 2 theta) d and the largest d over the clients, shape ``(size,)``."""
    squares = [
        torch.zeros(problem.clients, size, dtype=problem.dtype, device=problem.device) for size in problem.group_sizes
    ]
    for block, mean in zip(problem.blocks, means, strict=True):
        at_once = max(1, _ENTRIES // max(1, mean.numel()))
        for first in range(0, problem.clients, at_once):
            own = slice(first, first + at_once)
            square = torch.sub(block.data[own], mean).square_()
            for axis, group in enumerate(block.groups):
                squares[group][own] += square.sum([other for other in range(1, square.dim()) if other != axis + 1])
    weights = problem.weight_tensor(0)
    factors = 1.0 + 2.0 * weights / (weights.sum() - weights)
    norms = [square.sqrt_() for square in squares]
    return [(factors * norm).amax(0) for norm in norms], [norm.amax(0) for norm in norms]


def _separated(gram: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Whether every two means are as far from each other as the deviations demand: a boolean scalar.

    The slack covers the rounding errors: those of the distances and of the deviations are some units in the last place of
    the squared norms.
    """
    norms = gram.diagonal()
    scale = norms[:, None] + norms
    slack = _ROUNDING * torch.finfo(gram.dtype).eps * scale
    spare = scale.sub_(gram, alpha=2.0).sub_(slack).sub_((near[:, None] + far).square_())
    spare.fill_diagonal_(0.0)
    return (spare >= 0.0).all()


_ENTRIES = 1 << 18  # that are subtracted at a time: they stay in the cache
_ROUNDING = 32.0
