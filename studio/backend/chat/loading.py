"""Load models into an engine, one at a time. The present model answers until the next one is ready.

    loader = Loader(host)                          # the host holds the queue and the model
    loader.start("allenai/OLMoE-1B-7B-0924")       # downloads and loads in the background
    loader.change.text                             # the progress, or why it failed

If both models fit into the memory, the present one answers while the next is read. Otherwise it answers until the
download is complete, and its memory is freed then. A server whose first model fails tries again by itself, because
nobody may be there to restart it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from studio.backend.chat.decoder import Decoder
from studio.backend.hosting import demo
from studio.backend.models import catalog, placement
from studio.backend.models.needs import Needs, needs_of
from studio.backend.models.placement import Placement, Precision
from studio.backend.system.progress import Progress, reading
from studio.errors import StudioError

logger = logging.getLogger(__name__)
UNAVAILABLE = "The model can't be loaded at the moment."
FIRST_WAIT_S, LONGEST_WAIT_S = 15.0, 600.0
"""Seconds between attempts to load a server's first model; they double."""


def silent(fraction: float, text: str) -> None:
    pass


@dataclass(frozen=True)
class Change:
    """A model that is being loaded, or that could not be loaded."""

    state: Literal["preparing", "loading", "failed"]
    """"preparing" includes the download, which can be cancelled."""
    model_id: str
    precision: Precision
    text: str
    """A sentence for the user."""
    progress: float | None = None
    """0 to 1, or None if unknown."""
    back_to: str | None = None
    """After a failure: the model that answers, or that answered before."""
    reason: str = ""
    """Why the model could not be loaded. In a demo `text` leaves it out, because visitors can't act on it."""
    retry_at: float | None = None
    """When the next attempt begins, as `time.monotonic` counts."""


class Host(Protocol):
    """What a loader needs of an engine."""

    def held(self) -> AbstractContextManager[None]:
        """Hold the model, so that no answer uses it."""

    def loaded_gib(self) -> float:
        """Return the memory of the loaded model; 0 if there is none."""

    def install(self, model_id: str, place: Placement, decoder: Decoder, tokenizer: PreTrainedTokenizerFast) -> str:
        """Replace the loaded model and return a sentence about the new one. The caller must hold the queue."""

    def unload(self) -> None:
        """Free the memory of the loaded model. The caller must hold the queue."""


class Cancelled(StudioError):
    """The user has cancelled the download."""


class Loader:
    def __init__(self, host: Host) -> None:
        self.change: Change | None = None
        self._host = host
        self._loading = threading.Lock()
        self._cancel = threading.Event()
        self._present: tuple[str, Precision] | None = None
        """The model that was loaded last."""

    def start(
        self,
        model_id: str,
        progress: Progress = silent,
        precision: Precision = "auto",
        waits: Iterator[float] | None = None,
    ) -> None:
        """Load a model in the background.

        Args:
            waits: seconds between attempts, as of `growing_waits`; None tries once.

        Raises:
            StudioError: the model or the precision is unknown, or another model is being loaded.
        """
        catalog.entry(model_id)
        placement.check_precision(precision)
        asked = self.change
        is_idle = asked is None or asked.state == "failed"
        # A thread that has just ended may still hold the lock.
        if not self._loading.acquire(timeout=1.0 if is_idle else 0.0):
            if asked and (asked.model_id, asked.precision) == (model_id, precision):  # a page may send one choice twice
                return
            raise StudioError("Another model is being loaded. Wait until it is ready, or cancel its download.")
        self._begin(model_id, precision)

        def run() -> None:
            try:
                self._load(model_id, progress, precision)
            except StudioError as error:
                logger.error("%s", error)  # also in the status
                self._plan_retry(progress, waits)
            finally:
                self._loading.release()

        threading.Thread(target=run, daemon=True, name="load").start()

    def load(self, model_id: str, progress: Progress = silent, precision: Precision = "auto") -> None:
        """Load a model and wait for it; raise StudioError if that fails."""
        catalog.entry(model_id)
        placement.check_precision(precision)
        with self._loading:
            self._begin(model_id, precision)
            self._load(model_id, progress, precision)

    def cancel(self) -> None:
        """Cancel the download, at the latest after the files in progress; a no-op once the weights are being read."""
        self._cancel.set()
        change = self.change
        if change and change.state == "preparing":
            self.change = replace(change, text="Cancelling the download …")

    def retry(self) -> None:
        """Load the model again that could not be loaded; raise StudioError if there is none."""
        failed = self._failed()
        self.start(failed.model_id, precision=failed.precision)

    def _plan_retry(self, progress: Progress, waits: Iterator[float] | None) -> None:
        """Load the model again later, unless someone has loaded another one, or tried again, by then."""
        failed = self.change
        if waits is None or failed is None or failed.state != "failed":
            return
        wait_s = next(waits)
        planned = self.change = replace(failed, retry_at=time.monotonic() + wait_s)

        def retry() -> None:
            if self.change is planned:
                self.start(planned.model_id, progress, planned.precision, waits)

        timer = threading.Timer(wait_s, retry)
        timer.daemon = True
        timer.start()

    def go_back(self) -> None:
        """Forget the failure; load the previous model again if it was unloaded.

        Raises:
            StudioError: nothing has failed, or no other model was loaded before.
        """
        self._failed()
        if self._host.loaded_gib():
            self.change = None
        elif self._present:
            self.start(self._present[0], precision=self._present[1])
        else:
            raise StudioError("No model was loaded before. Retry, or pick another model.")

    def needs(self, model_id: str, precision: Precision, token: bool | None = None) -> Needs:
        """Return what it takes to load a model now; raise StudioError as `needs_of` does."""
        return needs_of(catalog.entry(model_id), precision, self._host.loaded_gib(), token)

    def _failed(self) -> Change:
        if self.change is None or self.change.state != "failed":
            raise StudioError("No model has failed to load. Pick one above the chat.")
        return self.change

    def _begin(self, model_id: str, precision: Precision) -> None:
        self._cancel.clear()
        self.change = Change("preparing", model_id, precision, "Getting the model ready …", 0.0)

    def _load(self, model_id: str, progress: Progress, precision: Precision) -> None:
        def report(state: Literal["preparing", "loading"], fraction: float, text: str) -> None:
            if state == "preparing" and self._cancel.is_set():
                raise Cancelled(f"The download of {model_id} was cancelled. Complete files are kept.")
            self.change = Change(state, model_id, precision, text, fraction)
            progress(fraction, text)

        try:
            report("preparing", 0.0, "Checking what the model needs …")
            if problem := self.needs(model_id, precision).problem:
                raise StudioError(problem)
            path = catalog.prepare(model_id, lambda fraction, text: report("preparing", fraction, text))
            loaded = self._replace(model_id, path, precision, lambda fraction, text: report("loading", fraction, text))
            self._present, self.change = (model_id, precision), None
            progress(1.0, loaded)
        except Cancelled:
            self.change = None
            raise
        except StudioError as error:
            self._fail(model_id, precision, str(error))
            raise
        except Exception as error:
            logger.exception("loading %s failed", model_id)
            text = f"Loading {model_id} failed ({type(error).__name__}). The log of the studio has the details."
            self._fail(model_id, precision, text)
            raise StudioError(text) from error

    def _fail(self, model_id: str, precision: Precision, reason: str) -> None:
        back_to = self._present[0] if self._present else None
        text = UNAVAILABLE if demo.limits() else reason
        self.change = Change("failed", model_id, precision, text, back_to=back_to, reason=reason)

    def _replace(self, model_id: str, path: Path, precision: Precision, progress: Progress) -> str:
        model, loaded = catalog.entry(model_id), self._host.loaded_gib()
        place = placement.placement(model, precision, loaded)
        is_beside = placement.needed_gib(model, place) <= placement.free_gib(place)
        read = reading(progress)
        with ExitStack() as held:
            # transformers changes the default dtype of the whole process while it builds the modules, so no answer
            # may be written meanwhile.
            held.enter_context(self._host.held())
            progress(0.0, "Loading the weights …")
            if not is_beside:
                self._host.unload()

            def read_on(done: int, total: int) -> None:
                if is_beside:
                    held.close()
                read(done, total)

            decoder, tokenizer = load_decoder(path, place, read_on)
            if is_beside:
                held.close()
                held.enter_context(self._host.held())
            return self._host.install(model_id, place, decoder, tokenizer)


def growing_waits(first_s: float = FIRST_WAIT_S, longest_s: float = LONGEST_WAIT_S) -> Iterator[float]:
    """Yield waits that double, up to the longest."""
    wait_s = first_s
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, longest_s)


def load_decoder(
    path: Path, place: Placement, progress: Callable[[int, int], None]
) -> tuple[Decoder, PreTrainedTokenizerFast]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise StudioError(f"The tokenizer in {path.name} is not a fast tokenizer. Add its tokenizer.json.")
    spread = "auto" if torch.cuda.device_count() > 1 else None
    model: Any = placement.load_model(path, place, "load the model in nf4", progress, device_map=spread)
    return Decoder(model, model.config.max_position_embeddings), tokenizer
