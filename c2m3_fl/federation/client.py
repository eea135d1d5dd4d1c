"""For a ClientApp: moments of activations, from which a server without data repairs the merged network.

A strategy with ``moments_from="clients"`` asks for them twice in a round. With the training message its config holds
``c2m3-moments``; the reply then carries the moments of the trained network in an ArrayRecord of its own. Later it sends
the merged network in a message of type ``query.c2m3_moments``, to be measured on the same inputs. A ClientApp answers so::

    from c2m3_fl.federation.client import MOMENTS_QUERY, answer_moments, attach_moments


    @app.train()
    def train(message, context):
        ...
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        attach_moments(content, message, model, inputs)
        return Message(content, reply_to=message)


    @app.query(MOMENTS_QUERY)
    def moments(message, context):
        return answer_moments(message, model, inputs)

What leaves the client is, per channel of each layer that can be repaired, a mean, a variance and a count: no example and
no gradient. Measure on examples that the client did not train on where it has some.
"""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from c2m3_fl.activations import RepairError, measure, to_arrays
from c2m3_fl.activations.calibration import Calibration

MOMENTS_KEY = "c2m3-moments"
"""Key of the request in a training message's config, and of the ArrayRecord with the answer."""

MOMENTS_QUERY = "c2m3_moments"
"""Action of the query message; its full type is ``query.c2m3_moments``."""


def attach_moments(
    content: RecordDict,
    message: Message,
    module: nn.Module,
    inputs: Calibration,
    *,
    device: str | torch.device = "auto",
) -> None:
    """Add the trained network's moments to the content of a reply, if the server asked for them.

    Parameters
    ----------
    content
        The content of the reply to the training message.
    message
        The training message.
    module
        The trained network.
    inputs
        What to measure on: a tensor, or an iterable of batches. The same inputs must answer the query.
    device
        ``"auto"`` (CUDA where present) or a torch device.

    Raises
    ------
    RepairError
        If the network cannot be measured on the inputs.
    """
    asked = any(bool(config.get(MOMENTS_KEY, False)) for config in message.content.config_records.values())
    if asked:
        content[MOMENTS_KEY] = _record(module, inputs, device)


def answer_moments(
    message: Message, module: nn.Module, inputs: Calibration, *, device: str | torch.device = "auto"
) -> Message:
    """Answer a query: load the network that it brings, measure it, and send the moments back.

    Parameters
    ----------
    message
        The query.
    module
        A network of the clients' architecture; its weights are replaced by those of the message. Tensors that are not
        federated, such as a personal head, stay the client's own.
    inputs
        The inputs on which the client measured its own network.
    device
        ``"auto"`` (CUDA where present) or a torch device.

    Raises
    ------
    RepairError
        If the network cannot be measured on the inputs.
    """
    arrays = next(iter(message.content.array_records.values()))
    unknown = module.load_state_dict(arrays.to_torch_state_dict(), strict=False).unexpected_keys
    if unknown:
        raise RepairError(f"the query brings {unknown[0]!r}, which the module does not have")
    return Message(RecordDict({MOMENTS_KEY: _record(module, inputs, device)}), reply_to=message)


def request_moments(config: ConfigRecord) -> None:
    """Ask for moments in a training message's config."""
    config[MOMENTS_KEY] = True


def _record(module: nn.Module, inputs: Calibration, device: str | torch.device) -> ArrayRecord:
    moments = measure(module, module.state_dict(), inputs, device=device)
    return ArrayRecord({name: Array(array) for name, array in to_arrays(moments).items()})
