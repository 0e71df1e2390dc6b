"""The model card of an export: usage, training, figures, routing drift and the merge proof."""

from __future__ import annotations

import html
import json
import re
import textwrap
from dataclasses import replace
from typing import Any

import yaml

from studio.backend.adapters.find import Found
from studio.backend.classification import tfidf
from studio.backend.data import hub_dataset
from studio.backend.data.labelled import Labels
from studio.backend.data.text_prompt import filled
from studio.backend.export.base import Base, labels_of_adapter
from studio.backend.models import catalog
from studio.backend.runs.run import DATA, Run
from studio.backend.system.files import read_json

# Classifier metrics where higher is better.
HIGHER = {"accuracy": "held-out accuracy", "macro_f1": "held-out macro-F1", "r2": "held-out R²"}
LARGEST_CARD = 1 << 20
# Placeholder for the place that the card's examples load from, until it is known.
PLACE = "THIS FOLDER"
WITH_TFIDF = (
    "The code above gives the scores of the head alone. JetMoE Studio answers with a weighted sum of these logits and "
    f"those of TF-IDF with logistic regression (ridge regression for numbers), which is in `{tfidf.WEIGHTS}` and "
    f"`{tfidf.VOCABULARY}`. The latter lists words and word pairs of the training texts."
)


def model_card(found: Found, base: Base, proof: dict[str, Any] | None) -> str:
    """Return the model card. User text is escaped or fenced, so that it can't change the front matter or the layout."""
    run, labels = found.run, labels_of_adapter(found.folder)
    what = ("A merged model" if proof else "A LoRA adapter") + (" with a classification head" if labels else "")
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(base, proof, labels, run), sort_keys=False, allow_unicode=True)}---",
        f"# {_escaped(found.name)}",
        f"{what} for {_escaped(base.entry.id)}, made with JetMoE Studio.",
        "## Use\n\n" + (_usage(base, proof) if labels is None else _labelled_usage(base, proof, labels)),
        *([WITH_TFIDF] if labels and labels.with_tfidf else []),
        *([] if labels is None else ["## Labels\n\n" + _labels_text(labels, run)]),
        *([] if run is None else _training(run, base)),
        *([] if proof is None else ["## Merge proof\n\n" + _proof_text(proof)]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: Base, proof: dict[str, Any] | None, labels: Labels | None, run: Run | None) -> dict[str, Any]:
    known = base.entry in (catalog.STARTER, *catalog.RELEASED)
    return {
        "base_model": base.entry.id,
        "base_model_relation": "finetune" if proof else "adapter",
        "library_name": "transformers" if proof else "peft",
        "pipeline_tag": "text-generation" if labels is None else "text-classification",
        **({"license": "apache-2.0"} if known else {}),
        **({"datasets": [hub_dataset.parse(run.data).repo]} if run and hub_dataset.is_reference(run.data) else {}),
        "tags": ["jetmoe", "mixture-of-experts", "lora"],
    }


def _usage(base: Base, proof: dict[str, Any] | None) -> str:
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
    where = "The base model is not on the hub: use its folder, as printed by `python -m studio models --json`."
    return _fenced("\n".join(lines), "python") + ("" if "/" in base.entry.id else f"\n\n{where}")


def _labelled_usage(base: Base, proof: dict[str, Any] | None, labels: Labels) -> str:
    # Each text needs the prompt that the head was trained with.
    text = json.dumps(filled(labels.prompt, "A text"), ensure_ascii=False)
    four_bit = proof is not None and proof["precision"] == "nf4"
    need = "required: reads 4-bit experts" if four_bit else "for speed; without it, stock transformers answers the same"
    lines = [f"import jetmoe  # {need}"]
    if proof:
        lines += [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("text-classification", model="{PLACE}")',
        ]
        return _fenced("\n".join([*lines, f"print(classify({text}, top_k=None))"]), "python")
    lines += [
        "from peft import PeftModel",
        "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'config = AutoConfig.from_pretrained("{PLACE}")  # names the labels',
        f"base = AutoModelForSequenceClassification.from_pretrained({json.dumps(base.entry.id)}, config=config)",
        f'model = PeftModel.from_pretrained(base, "{PLACE}").eval()',
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base.entry.id)})",
        f'logits = model(**tokenizer({text}, return_tensors="pt")).logits',
    ]
    where = "The base model is not on the hub: use its folder, as printed by `python -m studio models --json`."
    return _fenced("\n".join(lines), "python") + ("" if "/" in base.entry.id else f"\n\n{where}")


def _labels_text(labels: Labels, run: Run | None) -> str:
    if labels.problem == "regression":
        return f"The head estimates a number: {_escaped(labels.names[0])}."
    counts = _report(run).get("labels", {}) if run else {}
    several = "A text may have several of these." if labels.problem == "multi_label" else "A text has one of these."
    rows = {name: [counts[name]] if name in counts else [""] for name in labels.names}
    return f"{several}\n\n" + _table(["label", "rows trained on"], rows)


def _training(run: Run, base: Base) -> list[str]:
    recipe = run.recipe()
    # Without local paths, which would reveal user names and folders of the training machine.
    shown = replace(recipe, model=base.entry.id, data=run.data_name)
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
    return read_json(run.folder / DATA) or {}


def _data(run: Run) -> str:
    report = _report(run)
    names = ("file", "format", "examples", "train_rows", "held_out_rows", "fingerprint")
    return _table(["", ""], {name.replace("_", " "): [report[name]] for name in names if name in report})


def _drift(run: Run) -> str:
    """Return the routing drift from the base model, on the probe text of the recipe or the studio."""
    titles = {
        "flip_rate": "tokens whose strongest expert changed",
        "overlap": "chosen experts that stayed",
        "js": "Jensen-Shannon divergence of the routers, in nats",
        "load_shift": "load that moved to other experts",
    }
    # The adapter comes from the best checkpoint, so the drift measured there is shown.
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
        "error": "distance of the merged model from base and adapter, relative to that",
        "tolerance": "allowed distance",
        "from_base": "distance of the merged model from the base, relative to that",
        "same_next_token": "share of tokens after which both predict the same",
        "same_label": "share of the text's prefixes to which both give the same label",
    }
    rows = {title: [proof[name]] for name, title in titles.items() if name in proof}
    rows |= {f"rounding of the {part}, relative to its change": [loss] for part, loss in proof["rounding_loss"].items()}
    text = (
        f"The written files were read back in {proof['precision']} and compared on a text of {proof['tokens']} tokens."
    )
    return f"{text}\n\n{_table(['', ''], rows)}"


def _table(head: list[str], rows: dict[str, list[Any]]) -> str:
    """Return a Markdown table; empty without rows."""
    cells = [[name, *map(_shown, row)] for name, row in rows.items()]
    lines = [head, ["---"] * len(head), *(list(map(_escaped, row)) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """Return the text as one line, with Markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fenced(text: str, language: str) -> str:
    """Return the text in a fence that nothing in it can close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{textwrap.dedent(text).strip()}\n{fence}"
