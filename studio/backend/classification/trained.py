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
from jetmoe.adapters.files import CONFIG, read_head
from jetmoe.adapters.switching import Adapters
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, find, is_same_model, require_model
from studio.backend.chat.text_stream import token_texts
from studio.backend.classification.head import labels_of, probabilities
from studio.backend.data.labelled import Labels, encode
from studio.backend.data.packing import in_batches, pack, pad_id, side_by_side
from studio.backend.data.prompt import check_text
from studio.backend.models import catalog, placement
from studio.backend.system.progress import Progress, reading
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine

MODEL_CONFIG = "config.json"
"""Beside an adapter it names the labels."""
ROW_TOKENS, BATCH_TOKENS = 128, 1024
"""Of texts that go through together: of short ones that share a row, and of all rows."""
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
        placement.check_precision(precision)
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
        cancelled: Callable[[], bool] = lambda: False,
        with_trace: bool = False,
    ) -> Predictions | None:
        """The answers are in the order of the texts, which go through together, many short ones in a row. None where it
        was cancelled.

        Args:
            with_trace: texts go through one by one, and their routing is recorded.

        Raises:
            StudioError: a text is empty or too long to be one, or the model was taken away.
        """
        for number, text in enumerate(texts, start=1):
            check_text(text, f"Text {number}")
        encoded = [encode(self.body.tokenizer, text, self.max_length) for text in texts]
        token_ids = [ids for ids, _ in encoded]
        logits = torch.zeros(len(texts), len(self.names))  # [N, C]
        traces: list[RoutingTrace] = []
        for rows in [[[i]] for i in range(len(texts))] if with_trace else _batches(token_ids):
            with self.body.turn(cancelled) as decoder:  # others may have it between two batches
                if decoder is None or cancelled():
                    return None
                with placement.shortage("while classifying: shorten the texts, or load the model in nf4"):
                    ids = token_ids[rows[0][0]]
                    recorder = RoutingRecorder(decoder, len(ids)) if with_trace else None
                    found = self._logits(decoder, [[token_ids[i] for i in row] for row in rows], recorder)
            logits[[i for row in rows for i in row]] = found
            if recorder is not None:
                traces.append(recorder.trace(ids, token_texts(self.body.tokenizer, ids), True))
        scores = probabilities(self.problem, logits, self.labels.temperature).numpy()
        cut = tuple(i for i, (_, is_cut) in enumerate(encoded) if is_cut)
        return Predictions(self.names, self.problem, scores, cut, tuple(traces))

    def _logits(self, decoder: Any, rows: list[list[list[int]]], recorder: RoutingRecorder | None) -> Tensor:
        """`[texts, C]` in fp32, row by row."""
        pad = pad_id(self.body.tokenizer)
        ids, positions, last = (each.to(decoder.device) for each in side_by_side(rows, pad))  # [B, S] twice, [texts]
        hidden = decoder(input_ids=ids, position_ids=positions, use_cache=False, recorder=recorder).last_hidden_state
        pooled = hidden.flatten(0, 1)[last].float()  # [B, S, D] -> [texts, D]
        return (pooled @ self.head.to(pooled.device).T).cpu()


def _batches(token_ids: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Indices of the texts of each row of each batch. Short texts share rows, as padding costs as much as text; a long
    one has its own, as attention grows with the square of a row."""
    short = [i for i, ids in enumerate(token_ids) if len(ids) <= ROW_TOKENS]
    rows = [[short[i] for i in each] for each in pack([len(token_ids[i]) for i in short], ROW_TOKENS)]
    rows += [[i] for i, ids in enumerate(token_ids) if len(ids) > ROW_TOKENS]
    lengths = [sum(len(token_ids[i]) for i in row) for row in rows]
    return [[rows[i] for i in batch] for batch in in_batches(lengths, BATCH_TOKENS)]


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
    place = placement.placement(catalog.entry(base), cast(placement.Precision, precision))
    remedy = "load it in nf4"
    model = placement.load_model(path, place, remedy, reading(progress), model_class=JetMoeForSequenceClassification)
    return model, cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(path))


def always(model: Any) -> Callable[[Callable[[], bool]], AbstractContextManager[Any]]:
    """The turns of a `Body` that nobody else wants."""

    @contextmanager
    def turn(cancelled: Callable[[], bool]) -> Iterator[Any]:
        yield model.model

    return turn
