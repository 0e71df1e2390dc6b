"""Writes a tuned model for others: the adapter, or base and adapter merged with a proof, and a model card.

    export("3f2a", "pirate")                            # loads in stock PEFT on stock transformers' JetMoE
    export("3f2a", "pirate-merged", merge=True)         # loads in stock transformers

The folder appears whole or not at all. A merged one is read back first, and its logits are held against those of base
and adapter, and of the base alone; the figures are in `merge_proof.json` and in the model card.
"""

from __future__ import annotations

import gc
import html
import json
import re
import shutil
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from jetmoe import JetMoeConfig, JetMoeForCausalLM, JetMoeForSequenceClassification
from jetmoe.adapters.files import CONFIG, WEIGHTS, is_classifier, read_config, read_head
from jetmoe.adapters.merge import merge
from jetmoe.adapters.switching import Adapters
from jetmoe.loading.checkpoint import CheckpointError, is_4bit, stored_tensors
from jetmoe.loading.load import load
from jetmoe.lora import AdapterError
from studio.backend.adapters.find import Found, find, require_model
from studio.backend.classification.head import labels_of
from studio.backend.classification.probe import MAX_TOKENS, TEXT
from studio.backend.data.labelled import Labels
from studio.backend.data.packing import pad_id
from studio.backend.data.prompt import encode_plain
from studio.backend.models import catalog, placement
from studio.backend.runs.run import Run
from studio.backend.system.files import require_space
from studio.backend.system.progress import Progress, reading
from studio.backend.training.prepare import labelled_config
from studio.backend.training.run import DATA
from studio.errors import StudioError

# The studio reports progress itself.
transformers_logging.disable_progress_bar()
PROOF = "merge_proof.json"
# Measures of a classifier of which more is better.
HIGHER = {"accuracy": "held-out accuracy", "macro_f1": "held-out macro-F1", "r2": "held-out R²"}
# How far from base and adapter a merged model may be, in parts of the change that the adapter makes. Rounding to the
# stored precision is in it; below one half, it is nearer to base and adapter than to the base.
TOLERANCE = {"bf16": 0.25, "nf4": 0.5}
LARGEST_CARD = 1 << 20
# Beside the adapter of a classifier: it names the labels.
MODEL_CONFIG = "config.json"
# Where the card's examples load from, until it is known.
PLACE = "THIS FOLDER"


@dataclass(frozen=True)
class Export:
    folder: Path
    base_model: str
    """A hub id, or the id of a local model; never a path."""
    proof: dict[str, Any] | None
    """What `merge_proof.json` holds; None of an adapter, which is copied as it is."""

    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        return vars(self) | {"folder": str(self.folder), "merged": self.proof is not None}


def export(
    run_or_folder: str | Path,
    to: str | Path,
    merge: bool = False,
    four_bit: bool = False,
    model: str | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Export:
    """Writes the adapter, or the merged model, to a new folder.

    Args:
        run_or_folder: a run's id or its first characters, or the folder of a PEFT adapter.
        merge: add the adapter to the weights and store those, in 16 bits.
        four_bit: with `merge`, in 4 bits: of the base's 4-bit weights, dequantized, changed and quantized again.
        model: what the adapter was trained on; known where a run made it or it was uploaded.

    Raises:
        StudioError: no such adapter, another model's, a folder that isn't empty, a full disk, or a merge whose proof
            fails; nothing is left behind then.
    """
    found, target = find(run_or_folder), Path(to)
    base = _Base.of(found, model)
    if four_bit and not merge:
        raise StudioError("Only a merged model is written in 4 bits, not an adapter: merge too, or leave out 4 bits.")
    labels = _labels(found.folder)
    merging = _Merge(found.folder, base, "nf4" if four_bit else "bf16", progress, labels) if merge else None
    with _whole(target, _bytes_needed(found, merging)) as folder:
        try:
            proof = merging.write(folder) if merging else None
            if merging is None:
                _write_adapter(found, base, folder)
        except (AdapterError, CheckpointError) as error:
            raise StudioError(str(error)) from error
        with _writing(target):
            (folder / "README.md").write_text(_card(found, base, proof), encoding="utf-8")
    return Export(target, base.entry.id, proof)


@dataclass(frozen=True)
class _Base:
    model: str
    """As the catalog understands it; may be a path."""
    entry: catalog.ModelEntry

    @classmethod
    def of(cls, found: Found, model: str | None) -> _Base:
        """Raises StudioError: it isn't known or not the one that was trained."""
        model = model or found.model
        if not model:
            raise StudioError(f"No run of this studio made the adapter in {found.folder}; say of what model it is.")
        require_model(found, model)
        return cls(model, catalog.entry(model))


# --- folders that appear whole


@contextmanager
def _whole(target: Path, need_bytes: int) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end; whatever fails, nothing of it stays."""
    with _writing(target):
        target = target.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StudioError(f"{target} is not empty. Name a new folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, need_bytes)
        work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        work.mkdir()
    try:
        yield work
        with _writing(target):
            if target.exists():
                target.rmdir()
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StudioError(
            f"Writing to {folder.absolute().parent} failed ({str(error)[:300]}). Free some space there, or name "
            "another folder."
        ) from error


def _bytes_needed(found: Found, merging: _Merge | None) -> int:
    """What a model needs in memory is a little more than its files take."""
    if merging is not None:
        return int(merging.base.entry.needs_gib[merging.precision] * placement.GIB)
    return sum(file.stat().st_size for file in found.folder.glob(WEIGHTS)) + LARGEST_CARD


# --- the adapter


def _write_adapter(found: Found, base: _Base, folder: Path) -> None:
    """Raises AdapterError, StudioError: it can't be read or written."""
    read_config(found.folder, with_head=True)
    _check_weights(found.folder)
    config = json.loads((found.folder / CONFIG).read_text())
    config["base_model_name_or_path"] = base.entry.id
    with _writing(folder):
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        shutil.copyfile(found.folder / WEIGHTS, folder / WEIGHTS)
        if is_classifier(found.folder):
            shutil.copyfile(found.folder / MODEL_CONFIG, folder / MODEL_CONFIG)


def _labels(folder: Path) -> Labels | None:
    """What a classifier tells apart. Raises StudioError: it doesn't say."""
    if not is_classifier(folder):
        return None
    if not (folder / MODEL_CONFIG).is_file():
        raise StudioError(f"{folder.name} doesn't say what its labels are: there is no {MODEL_CONFIG} in it.")
    return labels_of(JetMoeConfig.from_pretrained(folder))


def _check_weights(folder: Path) -> None:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            weights.keys()
    except FileNotFoundError as error:
        raise AdapterError(f"{folder.name} holds no {WEIGHTS}; other formats can run code when opened.") from error
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is damaged ({error}); save or download the adapter again.") from error


# --- the merged model


@dataclass(frozen=True)
class _Merge:
    """Base and adapter on their way to merged files."""

    adapter: Path
    base: _Base
    precision: Literal["bf16", "nf4"]
    progress: Progress
    labels: Labels | None = None
    """Of a classifier."""

    def write(self, folder: Path) -> dict[str, Any]:
        """The proof. Raises AdapterError, CheckpointError, StudioError: it can't be merged or written, or it fails."""
        path = catalog.prepare(self.base.model, self.progress)
        if self.precision != "nf4" and is_4bit(stored_tensors(path)):
            raise StudioError(f"{self.base.entry.id} is in 4 bits: merge in 4 bits (--four-bit), or name a 16-bit one.")
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = encode_plain(tokenizer, TEXT)[:MAX_TOKENS]
        config = None if self.labels is None else labelled_config(path, self.labels, pad_id(tokenizer))
        alone, tuned, lost = self._merged(self._load(path, config), folder, ids)
        gc.collect()  # what was written is read back into the memory of what wrote it
        torch.cuda.empty_cache()
        proof = prove(alone, tuned, _logits(self._load(folder), ids), self.precision) | {"rounding_loss": lost}
        if self.labels is not None:
            proof["same_label"] = proof.pop("same_next_token")
        with _writing(folder):
            tokenizer.save_pretrained(folder)
            (folder / PROOF).write_text(json.dumps(proof, indent=2))
        return proof

    def _merged(self, model: Any, folder: Path, ids: list[int]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Writes the merged weights; logits of the base and with the adapter, and what rounding lost. The base has the
        trained head, too, as its own knows nothing."""
        adapters = Adapters(model)
        if self.labels is not None:
            model.score.weight.data.copy_(read_head(self.adapter))
        alone = _logits(model, ids)
        adapters.load(self.adapter, "tuned")
        adapters.use("tuned")
        tuned = _logits(model, ids)
        self.progress(1.0, "Merging and writing …")
        lost = merge(model)
        with _writing(folder):
            model.save_pretrained(folder)
        return alone, tuned, lost

    def _load(self, path: Path, config: JetMoeConfig | None = None) -> Any:
        model_class: Any = JetMoeForCausalLM if self.labels is None else JetMoeForSequenceClassification
        with placement.shortage("while merging: close other programs, or merge in 4 bits"):
            return load(
                model_class,
                path,
                quantization="nf4" if self.precision == "nf4" else None,
                dtype=torch.bfloat16,  # also where it is emulated: this is what is written
                device=placement.placement(self.base.entry, self.precision).device,
                config=config,
                progress=reading(self.progress),
            )


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """Of every token; of a classifier, what it says of the text up to there."""
    hidden = model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[0]
    head = model.score if isinstance(model, JetMoeForSequenceClassification) else model.lm_head
    return head(hidden).float().cpu()  # [T, vocabulary or labels]


def prove(alone: Tensor, tuned: Tensor, merged: Tensor, precision: str) -> dict[str, Any]:
    """That a merged model answers as base and adapter do, and not as the base alone, by their logits on one text.

    Returns:
        change: how far the adapter moves the logits, relative to those of the base;
        error, from_base: how far the merged ones are from base and adapter, and from the base, relative to that change.

    Raises:
        StudioError: it does not, or the adapter changes nothing.
    """
    change = (tuned - alone).norm()
    if not change > 0:
        raise StudioError("The adapter changes nothing on the probe text: there is nothing to merge. Train it first.")
    error, from_base = float((merged - tuned).norm() / change), float((merged - alone).norm() / change)
    if not error <= TOLERANCE[precision]:
        raise StudioError(_failure(error, precision))
    return {
        "precision": precision,
        "tokens": len(merged),
        "change": float(change / alone.norm()),
        "error": error,
        "tolerance": TOLERANCE[precision],
        "from_base": from_base,
        "same_next_token": float((merged.argmax(-1) == tuned.argmax(-1)).float().mean()),
    }


def _failure(error: float, precision: str) -> str:
    cause = "4 bits are too coarse for so small a change" if precision == "nf4" else "its change is lost in rounding"
    remedy = "merge in 16 bits, or export the adapter" if precision == "nf4" else "export the adapter without merging"
    return (
        f"The merged model does not answer as base and adapter do: it is off by {error:.2f} of the change that the "
        f"adapter makes, and {TOLERANCE[precision]} are allowed; {cause}. Nothing was written: {remedy}."
    )


# --- the model card


def _card(found: Found, base: _Base, proof: dict[str, Any] | None) -> str:
    """Text that people wrote is escaped or fenced, so that it can change neither front matter nor page."""
    run, labels = found.run, _labels(found.folder)
    what = ("A merged model" if proof else "A LoRA adapter") + (" with a classification head" if labels else "")
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(base, proof, labels), sort_keys=False, allow_unicode=True)}---",
        f"# {_escaped(found.name)}",
        f"{what} for {_escaped(base.entry.id)}, made with JetMoE Studio.",
        "## Use\n\n" + (_usage(base, proof) if labels is None else _labelled_usage(base, proof)),
        *([] if labels is None else ["## Labels\n\n" + _labels_text(labels, run)]),
        *([] if run is None else _training(run, base)),
        *([] if proof is None else ["## Merge proof\n\n" + _proof_text(proof)]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: _Base, proof: dict[str, Any] | None, labels: Labels | None) -> dict[str, Any]:
    known = base.entry in (catalog.STARTER, *catalog.RELEASED)
    return {
        "base_model": base.entry.id,
        "base_model_relation": "finetune" if proof else "adapter",
        "library_name": "transformers" if proof else "peft",
        "pipeline_tag": "text-generation" if labels is None else "text-classification",
        **({"license": "apache-2.0"} if known else {}),
        "tags": ["jetmoe", "mixture-of-experts", "lora"],
    }


def _usage(base: _Base, proof: dict[str, Any] | None) -> str:
    four_bit = proof is not None and proof["precision"] == "nf4"
    need = "required: reads 4-bit experts" if four_bit else "for speed; without it, stock transformers answers the same"
    lines = [f"import jetmoe  # {need}", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if proof:
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{PLACE}")')
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")')
        return _fenced("\n".join(lines), "python")
    lines.insert(1, "from peft import PeftModel")
    lines.append(f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base.entry.id)})")
    lines.append(f'model = PeftModel.from_pretrained(base, "{PLACE}")')
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base.entry.id)})")
    where = "Of a base that is not on the hub, give the folder that `python -m studio models --json` names."
    return _fenced("\n".join(lines), "python") + ("" if "/" in base.entry.id else f"\n\n{where}")


def _labelled_usage(base: _Base, proof: dict[str, Any] | None) -> str:
    four_bit = proof is not None and proof["precision"] == "nf4"
    need = "required: reads 4-bit experts" if four_bit else "for speed; without it, stock transformers answers the same"
    lines = [f"import jetmoe  # {need}"]
    if proof:
        lines += [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("text-classification", model="{PLACE}")',
        ]
        return _fenced("\n".join([*lines, 'print(classify("A text", top_k=None))']), "python")
    lines += [
        "from peft import PeftModel",
        "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'config = AutoConfig.from_pretrained("{PLACE}")  # names the labels',
        f"base = AutoModelForSequenceClassification.from_pretrained({json.dumps(base.entry.id)}, config=config)",
        f'model = PeftModel.from_pretrained(base, "{PLACE}").eval()',
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base.entry.id)})",
        'logits = model(**tokenizer("A text", return_tensors="pt")).logits',
    ]
    where = "Of a base that is not on the hub, give the folder that `python -m studio models --json` names."
    return _fenced("\n".join(lines), "python") + ("" if "/" in base.entry.id else f"\n\n{where}")


def _labels_text(labels: Labels, run: Run | None) -> str:
    if labels.problem == "regression":
        return f"The head estimates a number: {_escaped(labels.names[0])}."
    counts = _report(run).get("labels", {}) if run else {}
    several = "A text may have several of these." if labels.problem == "multi_label" else "A text has one of these."
    rows = {name: [counts[name]] if name in counts else [""] for name in labels.names}
    return f"{several}\n\n" + _table(["label", "rows trained on"], rows)


def _training(run: Run, base: _Base) -> list[str]:
    recipe = run.recipe()
    # Whose machine it was, and where the files lay there, is nobody's business.
    shown = replace(recipe, model=base.entry.id, data=Path(recipe.data).name)
    sections = {"Training": _metrics(run), "Data": _data(run), "Routing": _drift(run)}
    texts = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return [*texts, "## Recipe\n\n" + _fenced(shown.to_yaml(), "yaml")]


def _metrics(run: Run) -> str:
    lower = {"loss": _series(run, "log", "loss"), "held-out loss": _series(run, "eval", "eval_loss")}
    lower["held-out mean absolute error"] = _series(run, "eval", "eval_mean_absolute_error")
    higher = {title: _series(run, "eval", f"eval_{name}") for name, title in HIGHER.items()}
    rows = {name: [curve[0], curve[-1], min(curve)] for name, curve in lower.items() if curve}
    rows |= {name: [curve[0], curve[-1], max(curve)] for name, curve in higher.items() if curve}
    return _table(["", "first", "last", "best"], rows)


def _series(run: Run, kind: str, name: str) -> list[float]:
    values = [event.values.get(name) for event in run.events.read() if event.kind == kind]
    return [value for value in values if isinstance(value, int | float)]


def _report(run: Run) -> dict[str, Any]:
    file = run.folder / DATA
    return json.loads(file.read_text()) if file.is_file() else {}


def _data(run: Run) -> str:
    report = _report(run)
    names = ("file", "format", "examples", "train_rows", "held_out_rows", "fingerprint")
    return _table(["", ""], {name.replace("_", " "): [report[name]] for name in names if name in report})


def _drift(run: Run) -> str:
    """Against the base, on the studio's probe text or the recipe's."""
    titles = {
        "flip_rate": "tokens whose strongest expert changed",
        "overlap": "chosen experts that stayed",
        "js": "Jensen-Shannon divergence of the routers, in nats",
        "load_shift": "load that moved to other experts",
    }
    # The adapter is the best checkpoint's, so its drift is what was measured there.
    evaluations = [(each.values, each.step) for each in run.events.read() if each.kind == "eval" and each.step]
    worse = [
        (values["eval_loss"] if values.get("eval_macro_f1") is None else -values["eval_macro_f1"], step)
        for values, step in evaluations
        if values.get("eval_loss") is not None
    ]
    best = min(worse, default=(None, None))[1]
    measured = [each for each in run.events.read() if each.kind == "routing" and best in (None, each.step)]
    values = measured[-1].values if measured else {}
    return _table(["", "0 to 1"], {title: [values[name]] for name, title in titles.items() if name in values})


def _proof_text(proof: dict[str, Any]) -> str:
    titles = {
        "change": "how far the adapter moves the logits",
        "error": "merged model from base and adapter, in parts of that",
        "tolerance": "of which are allowed",
        "from_base": "merged model from the base, in parts of that",
        "same_next_token": "tokens after which both predict the same",
        "same_label": "beginnings of the text to which both give the same label",
    }
    rows = {title: [proof[name]] for name, title in titles.items() if name in proof}
    rows |= {f"rounding of the {part}, relative to its change": [loss] for part, loss in proof["rounding_loss"].items()}
    text = (
        f"The written files were read back in {proof['precision']} and compared on a text of {proof['tokens']} tokens."
    )
    return f"{text}\n\n{_table(['', ''], rows)}"


def _table(head: list[str], rows: dict[str, list[Any]]) -> str:
    """Empty without rows."""
    cells = [[name, *map(_shown, row)] for name, row in rows.items()]
    lines = [head, ["---"] * len(head), *(list(map(_escaped, row)) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """One line without Markdown and HTML."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fenced(text: str, language: str) -> str:
    """In a fence that nothing in the text can close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{textwrap.dedent(text).strip()}\n{fence}"
