"""Repair without data on the server: the clients measure, the server corrects.

Inside a round, after the training replies: the merged network goes to the clients whose networks it is made of; they
send the moments of its activations on their own inputs (`c2m3_fl.federation.client`), and one site is corrected. One
exchange corrects the last site, which is most of the gain; as many as there are sites give what a repair with the
clients' data on the server would give (see `c2m3_fl.repair.from_moments`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor, nn

from c2m3_fl.activations import Moments, RepairError, goal
from c2m3_fl.activations.moments import Spread, Statistics
from c2m3_fl.activations.network import Architecture
from c2m3_fl.federation.client import MOMENTS_QUERY
from c2m3_fl.federation.replies import Reply, read_moments
from c2m3_fl.federation.testimony import believable
from c2m3_fl.plausibility import ruined
from c2m3_fl.repair import repair_from_moments
from c2m3_fl.repair.bounds import largest, weight_norms
from c2m3_fl.robust import capped
from c2m3_fl.symmetry import PermutationSpec

SiteMoments = Mapping[str, Moments]


@dataclass(frozen=True)
class Measured:
    """A client whose network's moments, and norms of its channels' weights, are known in the universe's order of neurons."""

    node: int
    name: str
    weight: float
    moments: SiteMoments
    norms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Repaired:
    """A network repaired by its clients' moments, and how many of them took part in the last exchange."""

    state_dict: dict[str, Tensor]
    clients: int


def measured(
    module: Architecture,
    replies: Sequence[Reply],
    permutations: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec,
) -> list[Measured]:
    """The clients that sent usable moments with their networks, mapped into the universe like their networks."""
    network = module if isinstance(module, nn.Module) else module()
    elsewhere = network.state_dict().keys() - spec.tensors.keys()  # layers that are not federated are not corrected
    found = []
    for reply, maps in zip(replies, permutations, strict=True):
        if reply.moments is None:
            log(INFO, "aggregate_train: %s sent no moments and takes no part in the repair", reply.name)
            continue
        try:
            own = {site: each for site, each in reply.moments.items() if f"{site}.bias" not in elsewhere}
            moments = {site: _mapped(site, each, maps, spec) for site, each in own.items()}
            norms = weight_norms(module, spec.apply(reply.client.state_dict, maps), moments)
        except RepairError as error:
            log(WARNING, "aggregate_train: The moments of %s cannot be used: %s", reply.name, error)
            continue
        found.append(Measured(reply.node, reply.name, reply.weight, moments, norms))
    return found


def repair_by_clients(
    module: Architecture,
    merged: Mapping[str, Tensor],
    clients: Sequence[Measured],
    grid: Grid,
    *,
    query: RecordDict,
    arrayrecord_key: str,
    spread: Spread,
    bounded: bool,
    robust: bool,
    exchanges: int,
    timeout: float | None,
) -> Repaired:
    """Repair a merged network by moments that its clients measure.

    A client that does not answer, or answers nonsense or what the others' answers belie
    (`c2m3_fl.federation.testimony`), is left out of that exchange, on both sides: its own network's moments do not enter
    the goal either, so that the clients' different data cancel out. If nobody answers, the network stays as it is.

    Parameters
    ----------
    module
        The architecture.
    merged
        The network to repair.
    clients
        Who to ask, with the moments of their own networks.
    grid
        The way to them.
    query
        What else to send with the network.
    arrayrecord_key
        Key of the network in the query.
    spread
        See `c2m3_fl.repair.goal`.
    bounded
        Whether no channel's weights may become larger than in the client where they are largest.
    robust
        Whether to cap the clients' weights (see `c2m3_fl.robust.capped`).
    exchanges
        How many sites to correct: the last ones in the order of the forward pass, one an exchange.
    timeout
        Seconds to wait for the answers to one exchange; None for the grid's own limit.
    """
    current = dict(merged)
    asked = clients = _agreeing(clients)
    if not clients:
        return Repaired(current, 0)
    sites = list(clients[0].moments)[-exchanges:]
    for site in sites:
        content = RecordDict({arrayrecord_key: ArrayRecord(current), **query})
        answers = _ask(grid, asked, content, timeout)
        pairs = [(client, answers[client.node]) for client in asked if _fits(client, answers.get(client.node), site)]
        pairs = _believed(pairs, site)
        if not pairs:
            log(WARNING, "aggregate_train: No client measured the merged network; it stays as it is")
            return Repaired(current, 0)
        weights = capped([client.weight for client, _ in pairs]) if robust else [client.weight for client, _ in pairs]
        wanted = goal([{site: client.moments[site]} for client, _ in pairs], weights, spread=spread)
        found = goal([{site: answer[site]} for _, answer in pairs], weights, spread=spread)
        asked = [client for client, _ in pairs]  # who was silent once is not waited for again
        bounds = largest({site: client.norms[site]} for client, _ in pairs) if bounded else None
        current = _corrected(module, current, wanted, found, bounds)
    return Repaired(current, len(asked))


def _corrected(
    module: Architecture,
    merged: dict[str, Tensor],
    wanted: Mapping[str, Statistics],
    found: Mapping[str, Statistics],
    bounds: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The network with one site corrected, or as it was if the clients' moments make no sense of it."""
    try:
        corrected = repair_from_moments(module, merged, wanted, found, bounds)
    except RepairError as error:
        log(WARNING, "aggregate_train: The layer %s stays as it is: %s", ", ".join(wanted), error)
        return merged
    reason = ruined(corrected, merged)
    if reason:
        log(WARNING, "aggregate_train: The layer %s stays as it is; corrected, %s", ", ".join(wanted), reason)
    return merged if reason else corrected


def _believed(pairs: Sequence[tuple[Measured, SiteMoments]], site: str) -> list[tuple[Measured, SiteMoments]]:
    """Clients whose moments of a site, of their own network and of the merged one, are not belied by the others'."""
    kept = []
    reasons = believable([client.moments[site] for client, _ in pairs], [answer[site] for _, answer in pairs])
    for (client, answer), reason in zip(pairs, reasons, strict=True):
        if reason is None:
            kept.append((client, answer))
        else:
            log(
                WARNING,
                "aggregate_train: %s takes no part in the repair: at the layer %s %s",
                client.name,
                site,
                reason,
            )
    return kept


def _mapped(site: str, moments: Moments, maps: Mapping[str, Tensor], spec: PermutationSpec) -> Moments:
    axes = spec.tensors.get(f"{site}.bias")
    if axes is None or len(axes) != 1 or axes[0].size != len(moments.mean):
        raise RepairError(f"the network has no layer {site!r} with {len(moments.mean)} channels")
    index = axes[0].index(maps)
    return moments if index is None else Moments(moments.count, moments.mean[index], moments.variance[index])


def _agreeing(clients: Sequence[Measured]) -> list[Measured]:
    """Clients that measured the sites that most of them did; the first such set in the clients' order."""
    sets = [tuple(client.moments) for client in clients]
    usual = max(sets, key=sets.count, default=())
    for client, sites in zip(clients, sets, strict=True):
        if sites != usual:
            log(WARNING, "aggregate_train: %s measured other layers than most and takes no part", client.name)
    return [client for client, sites in zip(clients, sets, strict=True) if sites == usual]


def _ask(grid: Grid, clients: Iterable[Measured], content: RecordDict, timeout: float | None) -> dict[int, SiteMoments]:
    names = {client.node: client.name for client in clients}
    messages = [
        Message(content, dst_node_id=node, message_type=f"{MessageType.QUERY}.{MOMENTS_QUERY}") for node in names
    ]
    answers: dict[int, SiteMoments] = {}
    for message in grid.send_and_receive(messages, timeout=timeout):
        node = message.metadata.src_node_id
        if message.has_error():
            log(WARNING, "aggregate_train: %s did not measure: %s", names.get(node, node), message.error.reason)
        elif node in names and (moments := read_moments(names[node], message.content)) is not None:
            answers.setdefault(node, moments)
    for node in names.keys() - answers.keys():
        log(WARNING, "aggregate_train: %s takes no part in the repair: no usable answer", names[node])
    return answers


def _fits(client: Measured, answer: SiteMoments | None, site: str) -> bool:
    return answer is not None and site in answer and answer[site].mean.shape == client.moments[site].mean.shape
