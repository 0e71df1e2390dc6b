"""A trained classification head at work: of a run, of an exported adapter, or of a merged model.

    classifier = TrainedClassifier.load("3f2a")
    answer = classifier.predict(["The match ended in a draw.", "A new planet was found."])
    answer.names                                # ("science", "sport")
    answer.probabilities                        # [N, C]: softmax, sigmoid of each label, or the number itself
    classifier = TrainedClassifier.load("3f2a", engine=engine)      # shares the engine's model, if that is the base

C labels; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jetmoe import JetMoeConfig, JetMoeForSequenceClassification, RoutingRecorder, RoutingTrace
from jetmoe.lora import CONFIG, AdapterError, Adapters, read_head
from studio.backend import catalog, memory
from studio.backend.adapters import Found, find, is_same_model, require_model
from studio.backend.classification import labels_of, padded, probabilities
from studio.backend.download import Progress, reading
from studio.backend.labelled import Labels, encode
from studio.backend.packing import pad_id
from studio.backend.prompt import check_text
from studio.backend.text_stream import token_texts
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.engine import Engine

MODEL_CONFIG = "config.json"
"""Beside an adapter it names the labels."""
CLASSIFIER = JetMoeForSequenceClassification.__name__


class Body:
    """What reads the texts: the decoder under the head, for as long as a block lasts, and its tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        turn: Callable[[Callable[[], bool]], AbstractContextManager[Any]],
        context_size: int,
    ) -> None:
        self.tokenizer, self.turn, self.context_size = tokenizer, turn, context_size


@dataclass(frozen=True)
class Predictions:
    names: tuple[str, ...]
    problem: str
    probabilities: np.ndarray
    """float32 `[N, C]`, in the order of the texts: they sum to 1, each is one of its own, or they are the numbers."""
    cut: tuple[int, ...] = ()
    """The indices of the texts whose end was left out, for being longer than the head was trained on."""
    traces: tuple[RoutingTrace, ...] = ()
    """The routing of each text's tokens, where it was asked for."""


class TrainedClassifier:
    def __init__(self, labels: Labels, head: Tensor, body: Body, max_length: int, notice: str = "") -> None:
        self.labels, self.head, self.body, self.max_length = labels, head, body, max_length
        self.notice = notice
        """A sentence for the person, where a model was loaded for this alone."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels.names

    @property
    def problem(self) -> str:
        """single_label, multi_label or regression."""
        return self.labels.problem

    @classmethod
    def load(
        cls,
        run_or_folder: str | Path,
        engine: Engine | None = None,
        model: str | None = None,
        precision: str = "auto",
        progress: Progress = lambda fraction, text: None,
    ) -> TrainedClassifier:
        """The classifier of a run, by its id or the first characters of it, or of an exported folder.

        Args:
            engine: its model is shared, where it is the one that was trained; of runs only.
            model: what the adapter was trained on, where no run tells.
            precision: of a model that is loaded for this.

        Raises:
            StudioError: there is none, it does not classify, or its model can't be had.
        """
        memory.check_precision(precision)
        if _is_merged(Path(run_or_folder)):
            return cls._merged(Path(run_or_folder), precision, progress)
        found = find(run_or_folder)
        head, labels = _head(found), _labels(found.folder)
        base = model or found.model
        if not base:
            raise StudioError(f"No run of this studio made the adapter in {found.folder}; say of what model it is.")
        require_model(found, base)
        if len(head) != len(labels.names):
            raise StudioError(
                f"{found.name} names {len(labels.names)} labels for a head of {len(head)}. Export it again."
            )
        shared = engine is not None and found.run is not None and _has_loaded(engine, base)
        body = _shared(cast("Engine", engine), found) if shared else _loaded(base, found.folder, precision, progress)
        notice = "" if shared or engine is None else f"{base} was loaded anew for this: the chat has another model."
        longest = found.run.recipe().max_length if found.run else body.context_size
        return cls(labels, head, body, min(longest, body.context_size), notice)

    @classmethod
    def _merged(cls, folder: Path, precision: str, progress: Progress) -> TrainedClassifier:
        model, tokenizer = _model(str(folder), precision, progress)
        body = Body(tokenizer, always(model), model.config.max_position_embeddings)
        return cls(labels_of(model.config), model.score.weight.float(), body, body.context_size)

    @torch.no_grad()
    def predict(
        self,
        texts: Sequence[str],
        batch_size: int = 16,
        cancelled: Callable[[], bool] = lambda: False,
        with_trace: bool = False,
    ) -> Predictions | None:
        """Texts of about one length go through together; the answers are in the order of the texts. None where it was
        cancelled.

        Args:
            with_trace: texts go through one by one, and their routing is recorded.

        Raises:
            StudioError: a text is empty or too long to be one, or the model was taken away.
        """
        for number, text in enumerate(texts, start=1):
            check_text(text, f"Text {number}")
        encoded = [encode(self.body.tokenizer, text, self.max_length) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i][0]))
        logits = torch.zeros(len(texts), len(self.names))  # [N, C]
        traces: dict[int, RoutingTrace] = {}
        size = 1 if with_trace else batch_size
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            with self.body.turn(cancelled) as decoder:  # others may have it between two batches
                if decoder is None or cancelled():
                    return None
                with memory.shortage("while classifying: shorten the texts, or load the model in nf4"):
                    ids = [encoded[i][0] for i in batch]
                    recorder = RoutingRecorder(decoder, len(ids[0])) if with_trace else None
                    logits[batch] = self._logits(decoder, ids, recorder)
            if recorder is not None:
                traces[batch[0]] = recorder.trace(ids[0], token_texts(self.body.tokenizer, ids[0]), True)
        found = probabilities(self.problem, logits, self.labels.temperature).numpy()
        cut = tuple(i for i, each in enumerate(encoded) if each[1])
        return Predictions(self.names, self.problem, found, cut, tuple(traces[i] for i in sorted(traces)))

    def _logits(self, decoder: Any, token_ids: list[list[int]], recorder: RoutingRecorder | None) -> Tensor:
        """`[B, C]` in fp32."""
        batch = {name: each.to(decoder.device) for name, each in padded(token_ids, pad_id(self.body.tokenizer)).items()}
        hidden = decoder(**batch, use_cache=False, recorder=recorder).last_hidden_state  # [B, S, D]
        last = batch["attention_mask"].sum(-1) - 1  # [B]
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last].float()  # [B, D]
        return (pooled @ self.head.to(pooled.device).T).cpu()


# --- what is there


def _is_merged(folder: Path) -> bool:
    file = folder / MODEL_CONFIG
    if not file.is_file() or (folder / CONFIG).is_file():
        return False
    return CLASSIFIER in (json.loads(file.read_text()).get("architectures") or [])


def _head(found: Found) -> Tensor:
    try:
        return read_head(found.folder)
    except AdapterError as error:
        raise StudioError(str(error)) from error


def _labels(folder: Path) -> Labels:
    if not (folder / MODEL_CONFIG).is_file():
        raise StudioError(
            f"{folder.name} doesn't say what its labels are: there is no {MODEL_CONFIG}. Export it again."
        )
    return labels_of(JetMoeConfig.from_pretrained(folder))


# --- who reads


def _has_loaded(engine: Engine, model: str) -> bool:
    status = engine.status()
    return status.state == "ready" and status.model_id is not None and is_same_model(status.model_id, model)


def _shared(engine: Engine, found: Found) -> Body:
    assert found.run is not None
    run_id = found.run.id

    @contextmanager
    def turn(cancelled: Callable[[], bool]) -> Iterator[Any]:
        with engine.turn(run_id, cancelled) as taken:
            yield None if taken is None else taken.decoder.model.model

    # The engine may have another model by the time of a turn: it then refuses the adapter.
    with engine.turn() as taken:
        assert taken is not None
        return Body(taken.tokenizer, turn, taken.decoder.context_size)


def _loaded(base: str, adapter: Path, precision: str, progress: Progress) -> Body:
    model, tokenizer = _model(base, precision, progress)
    adapters = Adapters(model)
    try:
        adapters.load(adapter, "trained")
    except AdapterError as error:
        raise StudioError(str(error)) from error
    adapters.use("trained")
    return Body(tokenizer, always(model), model.config.max_position_embeddings)


def _model(base: str, precision: str, progress: Progress) -> tuple[Any, PreTrainedTokenizerFast]:
    path = catalog.prepare(base, progress)
    place = memory.placement(catalog.entry(base), cast(memory.Precision, precision))
    remedy = "load it in nf4"
    model = memory.load_model(path, place, remedy, reading(progress), model_class=JetMoeForSequenceClassification)
    return model, cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(path))


def always(model: Any) -> Callable[[Callable[[], bool]], AbstractContextManager[Any]]:
    """The turns of a `Body` that nobody else wants."""

    @contextmanager
    def turn(cancelled: Callable[[], bool]) -> Iterator[Any]:
        yield model.model

    return turn
