"""A federation inside one process: for tests and for sweeps over many settings.

It calls the ClientApp in place of sending messages. Nothing else differs: strategies, ServerApp and ClientApp are the
ones that a deployment runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.serverapp import Grid

from c2m3_fl.federation import private
from clients.client_app import app as client_app
from simulations.app.records import RunRecord
from simulations.app.server_app import run
from simulations.app.settings import SimulationSettings

_SERVER_NODE_ID = 1
_RUN_ID = 1


class InProcessGrid(Grid):
    """Runs each client when a message is sent to it, one after the other, in the order of their node ids.

    Parameters
    ----------
    app
        The ClientApp, or what answers in its place.
    num_nodes
        Number of clients; client i has ``partition-id = i``.
    run_config
        Given to each client.
    """

    def __init__(self, app: Callable[[Message, Context], Message], num_nodes: int, run_config: UserConfig) -> None:
        private.act_as(_SERVER_NODE_ID, _RUN_ID)
        self._app = app
        self._contexts = {
            _SERVER_NODE_ID + 1 + i: Context(
                run_id=_RUN_ID,
                node_id=_SERVER_NODE_ID + 1 + i,
                node_config={"partition-id": i, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(num_nodes)
        }

    def set_run(self, run: private.Run) -> None:
        """There is one run: nothing to set."""

    @property
    def run(self) -> private.Run:
        """The run."""
        return private.empty_run(_RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a client."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """The clients."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered: a client has answered before anything could be pulled."""
        raise NotImplementedError("Use send_and_receive.")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered, as `push_messages`."""
        raise NotImplementedError("Use send_and_receive.")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Let each client answer its message. An exception becomes an error reply, as in a deployment."""
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return [self._answer(message) for message in ordered]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # whatever a client raises must not end the run
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(private.CLIENT_RAISED, reason), reply_to=message)


def simulate(settings: SimulationSettings, num_clients: int) -> RunRecord:
    """Run the app with `num_clients` clients in this process."""
    settings = replace(settings, num_clients=num_clients)
    return run(InProcessGrid(client_app, num_clients, settings.run_config()), settings)
