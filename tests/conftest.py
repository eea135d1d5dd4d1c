"""Fixtures that every package's tests share."""

import logging
from collections.abc import Iterator

import pytest
import torch

from c2m3_fl.federation import private


@pytest.fixture(autouse=True)
def _flower_task() -> None:
    """The identity that Flower gives to each process of a run; no message can be made without it."""
    private.act_as(1)


@pytest.fixture
def flower_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Flower's logger says, whatever level other tests have left it at."""
    logger = logging.getLogger("flwr")  # it does not propagate, so the handler must be put on it
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="flwr")
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; CUDA is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
