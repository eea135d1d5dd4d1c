"""Forward passes in step: every batch waits at a layer until all have reached it, the layer is changed, all go on.

A correction that needs a layer's activations over all batches, and changes them, would otherwise cost a pass over all
batches for each layer. Each batch's pass runs in a thread of its own, of which only one runs at a time: a thread has its
own stack of contexts (gradients' mode, autocast), so passes that wait do not see each other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2m3_fl.activations.calibration import Batch
from c2m3_fl.activations.network import Hook, Network
from c2m3_fl.activations.sites import Site


@dataclass(frozen=True)
class Call:
    """One call of a site in the pass of one batch."""

    batch: int
    site: Site
    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor:
        """The layer's input, if it has a single one."""
        found: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return found


class _StopForward(BaseException):
    """Ends a forward pass whose remainder is not needed; no layer of the user's catches it."""


class Lockstep:
    """A forward pass over all batches in which sites are changed in turn, each before its output reaches the next layer.

    Parameters
    ----------
    network
        With the state dict loaded.
    sites
        In the order of the forward pass.
    batches
        The calibration set.
    what
        Names the network in errors.
    visit
        Sees every call of each site, batch by batch.
    advance
        Changes the site's layer, after all batches have reached it.
    begin
        Told the batch whose pass starts, possibly anew: what was seen of it before no longer counts.

    Notes
    -----
    A site that one pass calls several times can only be changed for all its calls: passes start again behind it.
    A batch whose pass does not reach a site misses there, and starts again for the next one.
    """

    def __init__(
        self,
        network: Network,
        sites: Sequence[Site],
        batches: Sequence[Batch],
        what: str,
        *,
        visit: Callable[[Call], None],
        advance: Callable[[Site], None],
        begin: Callable[[int], None] = lambda batch: None,
    ) -> None:
        self.network, self.sites, self.batches, self.what = network, list(sites), batches, what
        self.visit, self.advance, self.begin = visit, advance, begin
        self.position = 0
        self.batch = 0
        self.calls = 0
        self.passes: list[_Pass] = []

    def run(self, hooks: Mapping[str, Hook] | None = None, read: Callable[[Any], Any] | None = None) -> list[Any]:
        """Change every site.

        Parameters
        ----------
        hooks
            Of layers by name; they see a site's output after the change.
        read
            What is to be made of the network's outputs; None if passes need not go on behind the last site.

        Returns
        -------
        list
            Per batch what was read.
        """
        own = {site.name: self._hook(site) for site in self.sites}
        with self.network.watched(own), self.network.watched(hooks or {}), ExitStack() as stack:
            stack.callback(self._close)
            self.passes = [self._new(index) for index in range(len(self.batches))]
            while self.position < len(self.sites):
                again = self._reach(self.sites[self.position])
                self.advance(self.sites[self.position])
                self.position += 1
                if again:
                    self._restart()
            return [] if read is None else [self._finished(index, read) for index in range(len(self.batches))]

    def _reach(self, site: Site) -> bool:
        """Bring every pass to a site; whether one went on behind it before it was changed."""
        again = site.calls > 1
        for index, each in enumerate(self.passes):
            self.batch, self.calls = index, 0
            if each.done:
                self.passes[index] = self._new(index)
            self.passes[index].go()
            again |= self.passes[index].done and self.calls > 0
        return again

    def _restart(self) -> None:
        self._close()
        self.passes = [self._new(index) for index in range(len(self.batches))]

    def _close(self) -> None:
        for each in self.passes:
            each.close()

    def _finished(self, index: int, read: Callable[[Any], Any]) -> Any:
        self.batch = index
        if self.passes[index].done:  # without having reached the last site
            self.passes[index] = self._new(index)
        self.passes[index].go()
        found = read(self.passes[index].output)
        self.passes[index].output = None
        return found

    def _new(self, index: int) -> _Pass:
        def forward() -> Any:
            self.begin(index)
            return self.network.forward(index, self.batches[index], self.what)

        return _Pass(forward, self.network.device)

    def _hook(self, site: Site) -> Hook:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if self.position == len(self.sites) or self.sites[self.position] is not site:
                return None
            self.visit(Call(self.batch, site, layer, args, kwargs, output))
            self.calls += 1
            if self.calls < site.calls:
                return None
            self.passes[self.batch].pause()
            torch.clear_autocast_cache()  # it may hold the parameters as they were
            return layer.forward(*args, **kwargs)

        return hook


class _Pass:
    """A forward pass that runs only while somebody waits in `go`."""

    def __init__(self, forward: Callable[[], Any], device: torch.device) -> None:
        self._forward, self._device = forward, device
        self._default_device = torch.get_default_device()
        self._run, self._wait = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name="forward pass in step", daemon=True)
        self._stopped = False
        self._error: BaseException | None = None
        self.output: Any = None

    @property
    def done(self) -> bool:
        """Whether the pass has ended."""
        return self._stopped

    def go(self) -> None:
        """Run until the next pause or the end."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._run.release()
        self._wait.acquire()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Called in the pass: let the one who waits go on. Random states are kept, as all passes share the generators."""
        states = self._random_states()
        self._wait.release()
        self._run.acquire()
        if self._stopped:
            raise _StopForward
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self._device)

    def close(self) -> None:
        """End the pass where it is."""
        running = self._thread.is_alive()
        self._stopped = True
        if running:
            self._run.release()
            self._thread.join()

    def _main(self) -> None:
        try:
            with torch.no_grad(), self._default_device:
                self.output = self._forward()
        except _StopForward:
            pass
        except BaseException as error:
            self._error = error
        self._stopped = True
        self._wait.release()

    def _random_states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states
