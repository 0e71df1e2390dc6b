"""Classify with a trained head: of a run, of an exported adapter, or of a merged model.

    classifier = TrainedClassifier.load("3f2a")
    answer = classifier.predict(["The match ended in a draw.", "A new planet was found."])
    answer.names                                # ("science", "sport")
    answer.probabilities                        # [N, C]: softmax, sigmoid of each label, or the number itself
    classifier = TrainedClassifier.load("3f2a", engine=engine)      # shares the engine's model if it is the base model

C labels; the other letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from jetmoe import RoutingRecorder, RoutingTrace
from jetmoe.adapters.files import CONFIG, read_head
from jetmoe.adapters.switching import Adapters
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, find, is_same_model, require_model
from studio.backend.chat.text_stream import token_texts
from studio.backend.classification.head import labels_of, probabilities
from studio.backend.classification.tfidf import Tfidf
from studio.backend.data.labelled import Labels
from studio.backend.data.packing import in_batches, pack, pad_id, side_by_side
from studio.backend.data.prompt import check_text
from studio.backend.data.text_prompt import encode_all
from studio.backend.models import catalog, placement
from studio.backend.system.files import read_json
from studio.backend.system.progress import Progress, reading
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine

MODEL_CONFIG = "config.json"
"""Next to an adapter, it holds the labels."""
ROW_TOKENS, BATCH_TOKENS = 128, 1024
"""Maximum tokens of a row of packed short texts, and of a batch."""


class Body:
    """The decoder under the head and its tokenizer. `turn` yields the decoder for the duration of a block."""

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
    """float32 `[N, C]`, in the order of the texts: a softmax, a sigmoid of each label, or the number itself."""
    cut: tuple[int, ...] = ()
    """Indices of the texts that were truncated because they are longer than the head was trained on."""
    traces: tuple[RoutingTrace, ...] = ()
    """Routing of each text's tokens, if requested."""


class TrainedClassifier:
    def __init__(
        self, labels: Labels, head: Tensor, body: Body, max_length: int, words: Tfidf | None = None, notice: str = ""
    ) -> None:
        self.labels, self.head, self.body, self.max_length, self.words = labels, head, body, max_length, words
        self.notice = notice
        """A sentence for the user if a model was loaded only for this classifier."""

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
        """Load the classifier of a run, by its id or the id's first characters, or of an exported folder.

        Args:
            engine: its model is shared if it is the base model; for runs only.
            model: the base model of the adapter, if no run records it.
            precision: precision of a model that is loaded for this classifier.

        Raises:
            StudioError: there is no such run or folder, it is not a classifier, or its model is unavailable.
        """
        placement.check_precision(precision)
        if _is_merged(Path(run_or_folder)):
            return cls._merged(Path(run_or_folder), precision, progress)
        found = find(run_or_folder)
        head, labels = _head(found), _labels(found.folder)
        base = model or found.model
        if not base:
            raise StudioError(f"The base model of the adapter in {found.folder} is unknown. Pass it as `model`.")
        require_model(found, base)
        if len(head) != len(labels.names):
            raise StudioError(
                f"{found.name} names {len(labels.names)} labels for a head of {len(head)}. Export it again."
            )
        words = _words(found.folder, labels)
        shared = engine is not None and found.run is not None and _has_loaded(engine, base)
        body = _shared(cast("Engine", engine), found) if shared else _loaded(base, found.folder, precision, progress)
        notice = "" if shared or engine is None else f"{base} was loaded separately: the chat uses another model."
        longest = found.run.recipe().max_length if found.run else body.context_size
        return cls(labels, head, body, min(longest, body.context_size), words, notice)

    @classmethod
    def _merged(cls, folder: Path, precision: str, progress: Progress) -> TrainedClassifier:
        model, tokenizer = _model(str(folder), precision, progress)
        body = Body(tokenizer, always(model), model.config.max_position_embeddings)
        labels = labels_of(model.config)
        return cls(labels, model.score.weight.float(), body, body.context_size, _words(folder, labels))

    @torch.no_grad()
    def predict(
        self,
        texts: Sequence[str],
        cancelled: Callable[[], bool] = lambda: False,
        with_trace: bool = False,
    ) -> Predictions | None:
        """Return the predictions in the order of the texts; None if cancelled. Short texts are packed into rows.

        Args:
            with_trace: run the texts one by one and record their routing.

        Raises:
            StudioError: a text is empty or too long, or the model was unloaded.
        """
        for number, text in enumerate(texts, start=1):
            check_text(text, f"Text {number}")
        encoded = encode_all(self.body.tokenizer, texts, self.max_length, self.labels.prompt)
        token_ids = [ids for ids, _ in encoded]
        logits = torch.zeros(len(texts), len(self.names))  # [N, C]
        traces: list[RoutingTrace] = []
        for rows in [[[i]] for i in range(len(texts))] if with_trace else _batches(token_ids):
            with self.body.turn(cancelled) as decoder:  # released between two batches
                if decoder is None or cancelled():
                    return None
                with placement.shortage("while classifying: shorten the texts, or load the model in nf4"):
                    ids = token_ids[rows[0][0]]
                    recorder = RoutingRecorder(decoder, len(ids)) if with_trace else None
                    found = self._logits(decoder, [[token_ids[i] for i in row] for row in rows], recorder)
            logits[[i for row in rows for i in row]] = found
            if recorder is not None:
                traces.append(recorder.trace(ids, token_texts(self.body.tokenizer, ids), True))
        if self.words is not None:
            logits = self.words.with_head(logits, texts)
        scores = probabilities(self.problem, logits, self.labels.temperature).numpy()
        cut = tuple(i for i, (_, is_cut) in enumerate(encoded) if is_cut)
        return Predictions(self.names, self.problem, scores, cut, tuple(traces))

    def _logits(self, decoder: Any, rows: list[list[list[int]]], recorder: RoutingRecorder | None) -> Tensor:
        """Return fp32 logits `[texts, C]`, row by row."""
        pad = pad_id(self.body.tokenizer)
        ids, positions, last = (each.to(decoder.device) for each in side_by_side(rows, pad))  # [B, S] twice, [texts]
        hidden = decoder(input_ids=ids, position_ids=positions, use_cache=False, recorder=recorder).last_hidden_state
        pooled = hidden.flatten(0, 1)[last].float()  # [B, S, D] -> [texts, D]
        return (pooled @ self.head.to(pooled.device).T).cpu()


def _batches(token_ids: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Return the indices of the texts of each row of each batch.

    Short texts share rows, because padding costs as much as text. A long text gets a separate row, because attention
    is quadratic in the length of a row.
    """
    short = [i for i, ids in enumerate(token_ids) if len(ids) <= ROW_TOKENS]
    rows = [[short[i] for i in each] for each in pack([len(token_ids[i]) for i in short], ROW_TOKENS)]
    rows += [[i] for i, ids in enumerate(token_ids) if len(ids) > ROW_TOKENS]
    lengths = [sum(len(token_ids[i]) for i in row) for row in rows]
    return [[rows[i] for i in batch] for batch in in_batches(lengths, BATCH_TOKENS)]


# --- files of a classifier


def _is_merged(folder: Path) -> bool:
    file = folder / MODEL_CONFIG
    if not file.is_file() or (folder / CONFIG).is_file():
        return False
    named = (read_json(file) or {}).get("architectures")
    return isinstance(named, list) and any(str(name).endswith("ForSequenceClassification") for name in named)


def _head(found: Found) -> Tensor:
    try:
        return read_head(found.folder)
    except AdapterError as error:
        raise StudioError(str(error)) from error


def _labels(folder: Path) -> Labels:
    if not (folder / MODEL_CONFIG).is_file():
        raise StudioError(
            f"The labels of {folder.name} are unknown, because it has no {MODEL_CONFIG}. Export it again."
        )
    return labels_of(AutoConfig.from_pretrained(folder))


def _words(folder: Path, labels: Labels) -> Tfidf | None:
    return Tfidf.load(folder, len(labels.names)) if labels.with_tfidf else None


# --- the model under the head


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

    # If the engine has another model by the time of a turn, it raises because the adapter does not fit.
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
    place = placement.placement(catalog.entry(base), cast(placement.Precision, precision))
    remedy = "load it in nf4"
    model = placement.load_model(path, place, remedy, reading(progress), model_class=AutoModelForSequenceClassification)
    return model, cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(path))


def always(model: Any) -> Callable[[Callable[[], bool]], AbstractContextManager[Any]]:
    """Return the `turn` of a `Body` whose model needs no queue."""

    @contextmanager
    def turn(cancelled: Callable[[], bool]) -> Iterator[Any]:
        yield model.model

    return turn
