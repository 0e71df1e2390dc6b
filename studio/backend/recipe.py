"""The settings of a training run: one dataclass, built from YAML, `key=value` overrides or a form.

    recipe = Recipe.load("starter/lora_experts", ["data=rows.csv", "learning_rate=1e-4"])
    recipe = Recipe.from_settings({"data": "rows.csv", "r": 8})
    recipe.to_yaml()                      # a recipe file that loads as the same recipe

All invalid settings are reported in one message, before a model is loaded.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from studio.backend.recipe_file import find_recipe, parse_yaml, read_yaml
from studio.errors import StudioError

# Section titles by the first field of the section; the form, `to_yaml` and the bundled files use this order.
SECTIONS = {
    "model": "Model",
    "data": "Data",
    "preset": "Adapter",
    "learning_rate": "Optimisation",
    "log_steps": "Evaluation and checkpoints",
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run.

    Raises:
        StudioError: values of the wrong type, out of range or in conflict; the message lists all of them.
    """

    model: str = "starter"
    """Model id from the catalog, or the path of a model folder."""
    precision: str = "auto"
    """Precision of the frozen weights: nf4 (4-bit), bf16 or fp32; auto is nf4 on a GPU, else the model's default."""
    task: str = "chat"
    """chat tunes the model's answers; classify trains a classification head on labelled texts."""
    data: str = ""
    """Data file (csv, tsv, json, jsonl, parquet, txt) or the name of a bundled sample."""
    format: str = "auto"
    """Format of the rows, such as messages or alpaca; auto detects it from the first rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of the format's fields, as field: column; empty finds the columns by name."""
    problem: str = "single_label"
    """For classify: single_label, multi_label (labels in a list, or joined by ; or |) or regression (a number)."""
    class_weights: str = "none"
    """For classify: balanced gives rows with rare labels more weight, so that all labels count equally."""
    on_bad_rows: str = "skip"
    """Rows that can't be used: skip leaves them out and lists them, stop refuses the file."""
    eval_share: float = 0.1
    """Share of rows held out for evaluation; 0 trains on all rows and evaluates nothing."""
    max_length: int = 512
    """Maximum tokens per row, or per pack; longer rows are cut. Memory and time grow with it."""
    packing: bool = True
    """For chat: short rows share packs of max_length without attending to each other. Faster, same result."""
    preset: str = "all"
    """Weights that get an adapter: attention, experts, moa (attention without kv_proj), all, router, hot; + joins."""
    hot_share: float = 0.5
    """For hot: train only the relevant experts (ESFT), which together take this share of the routing on your data."""
    insist_on_router: bool = False
    """Train routers even if the model ties them; this breaks the tie, and broken slot sets are counted."""
    r: int = 16
    """LoRA rank. A higher rank learns more and needs more memory."""
    lora_alpha: int = 32
    """LoRA scaling: the adapter's change is multiplied by lora_alpha / r."""
    learning_rate: float = 2e-4
    """Peak learning rate; lower it if the loss jumps, raise it if nothing changes."""
    lr_scheduler: str = "cosine"
    """Schedule of the learning rate after the warm-up: cosine, linear or constant."""
    warmup_share: float = 0.05
    """Share of all steps in the warm-up, where the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Weight decay, which pulls adapter weights towards 0 at every step; rarely needed."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm; longer gradients are clipped, and 0 turns clipping off."""
    epochs: float = 3.0
    """Passes over the training rows, unless max_steps is set."""
    max_steps: int = 0
    """Number of optimizer steps; 0 trains for epochs."""
    batch_size: int = 4
    """Rows, or packs, per batch and device. Lower this first if memory runs out."""
    gradient_accumulation: int = 1
    """Batches per optimizer step: a larger effective batch that costs time instead of memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of storing them: much less memory, about a third slower."""
    balance_loss: float = 0.0
    """Weight of the load-balancing loss; 0 turns it off, as OLMoE advises for fine-tuning (arXiv 2409.02060, 4.3)."""
    seed: int = 0
    """Seed of row order and initial adapter; the same seed on the same machine gives the same run."""
    log_steps: int = 1
    """Steps between points of the loss curve."""
    eval_steps: int = 20
    """Steps between evaluations on the held-out rows; 0 evaluates and saves once per epoch."""
    save_steps: int = 20
    """Steps between checkpoints; a multiple of eval_steps, because evaluations find the best checkpoint."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep besides the best one; older ones are deleted."""
    early_stopping: int = 0
    """Stop after this many evaluations without a better loss, or a classifier's macro-F1; 0 turns it off."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts to answer at every evaluation; empty uses the first three prompts of the held-out rows."""
    sample_tokens: int = 48
    """Maximum tokens per sample answer."""
    probe_text: str = ""
    """Text on which routing drift is measured; empty uses the studio's own."""

    def __post_init__(self) -> None:
        _refuse(_problems(vars(self)))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Load a YAML file or a bundled recipe such as "starter/lora_experts", with `key=value` overrides.

        Raises:
            StudioError: no such file, not a recipe, or invalid settings.
        """
        _refuse([f"{_shown(text)} must have the form setting=value" for text in overrides if "=" not in text])
        return cls.from_settings(read_yaml(find_recipe(path)) | dict(map(_override, overrides)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """Build a recipe from the values of a form or a file; missing settings get their defaults.

        Raises:
            StudioError: unknown settings or invalid values; the message lists all of them.
        """
        settings = {name: _coerce(DEFAULTS.get(name), value) for name, value in settings.items()}
        _refuse(_problems(settings))
        return cls(**settings)

    def to_yaml(self) -> str:
        """Return all settings as YAML, in sections."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return "\n".join(
            f"# {title}\n" + _dumped({name: values[name] for name in names}) for title, names in sections().items()
        )


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` and `below` exclude the bound itself."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether the value is in range; False for NaN, and for infinities because all bounds are finite."""
        return self.low <= value <= self.high and value not in self._left_out()

    def _left_out(self) -> list[float]:
        return [self.low] * self.above + [self.high] * self.below

    def __str__(self) -> str:
        if not (self.above or self.below):
            return f"from {self.low:g} to {self.high:.10g}"
        return (
            f"{'above' if self.above else 'from'} {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"
        )


# The format that `studio/backend/data/formats/labelled.py` reads.
LABELLED = "labelled"
PRESETS = ("attention", "experts", "moa", "all", "router", "hot")
CHOICES = {
    "precision": ("auto", "nf4", "bf16", "fp32"),
    "task": ("chat", "classify"),
    "problem": ("single_label", "multi_label", "regression"),
    "class_weights": ("none", "balanced"),
    "on_bad_rows": ("skip", "stop"),
    "lr_scheduler": ("cosine", "linear", "constant"),
}
RANGES = {
    "eval_share": Range(0, 0.5),
    "max_length": Range(16, 131_072),
    "hot_share": Range(0, 1, above=True),
    "r": Range(1, 512),
    "lora_alpha": Range(1, 4096),
    "learning_rate": Range(0, 0.1, above=True),
    "warmup_share": Range(0, 1, below=True),
    "weight_decay": Range(0, 1),
    "max_grad_norm": Range(0, 1000),
    "epochs": Range(0, 1000, above=True),
    "max_steps": Range(0, 10_000_000),
    "batch_size": Range(1, 4096),
    "gradient_accumulation": Range(1, 4096),
    "balance_loss": Range(0, 1),
    "seed": Range(0, 2**32 - 1),
    "log_steps": Range(1, 1_000_000),
    "eval_steps": Range(0, 1_000_000),
    "save_steps": Range(1, 1_000_000),
    "keep_checkpoints": Range(1, 1000),
    "early_stopping": Range(0, 1000),
    "sample_tokens": Range(1, 2048),
}
LONGEST = {"model": 1000, "data": 1000, "format": 50, "probe_text": 10_000}
MOST_PROMPTS, LONGEST_PROMPT = 16, 1000
MOST_COLUMNS, LONGEST_COLUMN = 20, 100
# Settings that are valid alone but conflict: their names, the condition, and the remedy.
CLASHES: list[tuple[tuple[str, ...], Callable[..., bool], str]] = [
    (
        ("early_stopping", "eval_share"),
        lambda patience, share: bool(patience) and not share,
        "early_stopping needs held-out rows: set eval_share above 0, or early_stopping to 0",
    ),
    (
        ("save_steps", "eval_steps", "eval_share"),
        lambda save, evaluate, share: bool(share and evaluate and save % evaluate),
        "save_steps must be a multiple of eval_steps, to find the best checkpoint: set both to the same value",
    ),
    (
        ("task", "sample_prompts"),
        lambda task, prompts: task == "classify" and bool(prompts),
        "task=classify answers no prompts: leave out sample_prompts",
    ),
    (
        ("task", "balance_loss"),
        lambda task, weight: task == "classify" and bool(weight),
        "task=classify has no load-balancing loss: set balance_loss to 0",
    ),
    (
        ("task", "format"),
        lambda task, format: task == "classify" and format not in ("auto", LABELLED),
        f"task=classify reads labelled texts: set format to {LABELLED} or auto",
    ),
    (
        ("task", "format"),
        lambda task, format: task == "chat" and format == LABELLED,
        f"format={LABELLED} is for classifiers: set task to classify, or choose another format",
    ),
    (
        ("task", "problem", "class_weights"),
        lambda task, problem, weights: task == "chat" and (problem, weights) != ("single_label", "none"),
        "problem and class_weights are for classifiers: set task to classify, or leave them out",
    ),
    (
        ("task", "problem", "class_weights"),
        lambda task, problem, weights: task == "classify" and problem == "regression" and weights != "none",
        "class_weights does not apply to regression: set it to none, or problem to single_label",
    ),
]


def sections() -> dict[str, list[str]]:
    """Return the field names by section title."""
    titles: dict[str, list[str]] = {}
    for name in DEFAULTS:
        if name in SECTIONS:
            names = titles[SECTIONS[name]] = []
        names.append(name)
    return titles


def field_help(settings: type = Recipe) -> dict[str, str]:
    """Return the docstring under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


DEFAULTS: dict[str, Any] = {
    setting.name: setting.default if setting.default_factory is MISSING else setting.default_factory()
    for setting in fields(Recipe)
}


def _dumped(values: dict[str, Any]) -> str:
    # YAML reads NEL, LS and PS line breaks back as spaces unless all non-ASCII characters are escaped.
    texts = "".join(text for value in values.values() for text in _texts(value))
    readable = not re.search("[\x85\u2028\u2029]", texts)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=readable)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise StudioError("Change these settings: " + "; ".join(problems) + ".")


def _problems(settings: Mapping[Any, Any]) -> list[str]:
    unknown = [_unknown(name) for name in settings if name not in DEFAULTS]
    wrong = {
        name: f"{name} is {_shown(value)}: set {_expected(name)}"
        for name, value in settings.items()
        if name in DEFAULTS and not _fits(name, value)
    }
    every = DEFAULTS | dict(settings)
    clashes = [
        remedy
        for names, clash, remedy in CLASHES
        if wrong.keys().isdisjoint(names) and clash(*(every[name] for name in names))
    ]
    return [*unknown, *wrong.values(), *clashes]


def _unknown(name: object) -> str:
    close = get_close_matches(str(name)[:100], DEFAULTS, n=1)
    return f"there is no setting {_shown(name)}" + (f", did you mean {close[0]}?" if close else "")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(name: str) -> str:
    match DEFAULTS[name]:
        case bool():
            return "true or false"
        case int() | float() as default:
            whole = "whole " if isinstance(default, int) else ""
            return f"a {whole}number {RANGES[name]}, such as {default:g}"
        case tuple():
            return f"a list of up to {MOST_PROMPTS} texts of up to {LONGEST_PROMPT} characters"
        case dict():
            return f"up to {MOST_COLUMNS} pairs of field: column, each up to {LONGEST_COLUMN} characters"
    if name in CHOICES:
        return "one of " + ", ".join(CHOICES[name])
    if name == "preset":
        return f"one or more of {', '.join(PRESETS)}, each once and joined by +"
    return f"a text of up to {LONGEST[name]} characters"


def _fits(name: str, value: Any) -> bool:
    match DEFAULTS[name]:
        case bool():
            return isinstance(value, bool)
        case int() | float() as default:
            kinds = int if isinstance(default, int) else (int, float)
            return isinstance(value, kinds) and not isinstance(value, bool) and RANGES[name].holds(value)
        case tuple():
            return isinstance(value, tuple) and _are_texts(value, MOST_PROMPTS, LONGEST_PROMPT)
        case dict():
            return isinstance(value, dict) and _are_texts([*value, *value.values()], 2 * MOST_COLUMNS, LONGEST_COLUMN)
    if name in CHOICES:
        return value in CHOICES[name]
    if name == "preset":
        return isinstance(value, str) and _are_presets(value.split("+"))
    return _is_text(value, LONGEST[name])


def _are_presets(names: list[str]) -> bool:
    return set(names) <= set(PRESETS) and len(names) == len(set(names))


def _are_texts(values: Sequence[Any], most: int, longest: int) -> bool:
    return len(values) <= most and all(_is_text(value, longest) and value for value in values)


def _is_text(value: Any, longest: int) -> bool:
    """Return whether a file can hold the text: it has no NUL and no lone surrogates."""
    return isinstance(value, str) and len(value) <= longest and not re.search("[\0\ud800-\udfff]", value)


def _coerce(default: Any, value: Any) -> Any:
    """Convert numbers and lists from forms and YAML 1.1, where `2e-4` is a string and 3 may arrive as 3.0."""
    if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, str):
        value = _number(value)
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _override(text: str) -> tuple[str, Any]:
    """Parse `key=value`; invalid YAML stays a string, which the checks then report with all other problems."""
    name, _, value = text.partition("=")
    # A file name may look like YAML, so the values of text fields are not parsed.
    if isinstance(DEFAULTS.get(name), str):
        return name, value
    try:
        return name, parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        return name, value
