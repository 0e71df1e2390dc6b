"""The settings of a training run: one dataclass, read from YAML, from `key=value` overrides or from a form.

    recipe = Recipe.load("starter/lora_experts", ["data=rows.csv", "learning_rate=1e-4"])
    recipe = Recipe.from_settings({"data": "rows.csv", "r": 8})
    recipe.to_yaml()                      # a recipe file that loads as the same recipe

Whatever is wrong with the settings is said in one sentence, before a model is loaded.
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

# Titles of the sections, by their first field; the form, `to_yaml` and the bundled files keep this order.
SECTIONS = {
    "model": "Model",
    "data": "Data",
    "preset": "Adapter",
    "learning_rate": "Optimisation",
    "log_steps": "Watching",
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run.

    Raises:
        StudioError: values of the wrong kind, out of range or at odds with each other, all of them named at once.
    """

    model: str = "starter"
    """A model of the catalog, or a model's folder."""
    precision: str = "auto"
    """How the frozen weights are held: nf4 (4-bit), bf16 or fp32; auto is 4-bit on a GPU, what suits the model else."""
    task: str = "chat"
    """What is learned: chat tunes how the model answers, classify gives it a head that sorts texts by their labels."""
    data: str = ""
    """A file (csv, tsv, json, jsonl, parquet, txt) or the name of a bundled sample."""
    format: str = "auto"
    """How a row is read: the name of a format, such as messages or alpaca; auto looks at the first rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column holds which field of the format, as field: column; empty finds them by their names."""
    problem: str = "single_label"
    """With classify: a text has a single_label, multi_label (a list, or joined by ; or |), or a number: regression."""
    class_weights: str = "none"
    """With classify: balanced lets the rows of rare labels count more, so that all labels count the same."""
    on_bad_rows: str = "skip"
    """What rows that can't be used do: skip leaves them out and lists them, stop refuses the file."""
    eval_share: float = 0.1
    """The share of rows held out to measure the loss on; 0 trains on all of them and measures nothing."""
    max_length: int = 512
    """Longest row, or pack, in tokens; longer rows are cut. Memory and time grow with it."""
    packing: bool = True
    """With chat: short rows share packs of max_length, and never attend to each other. Faster, same result."""
    preset: str = "all"
    """Which weights get an adapter: attention, experts, moa (attention without kv_proj), all, router, hot; + joins."""
    hot_share: float = 0.5
    """With hot: only the experts that together take this share of the routing on your data are trained."""
    insist_on_router: bool = False
    """Train routers even where the model ties them; the tie breaks, and broken slot sets are counted."""
    r: int = 16
    """Rank of the adapters. Higher learns more and takes more memory."""
    lora_alpha: int = 32
    """The adapters' change is scaled by lora_alpha / r."""
    learning_rate: float = 2e-4
    """The highest step size; lower it when the loss jumps, raise it when nothing changes."""
    lr_scheduler: str = "cosine"
    """How the learning rate falls after the warm-up: cosine, linear or constant."""
    warmup_share: float = 0.05
    """The share of all steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Pulls adapter weights towards 0 at every step; rarely needed with adapters."""
    max_grad_norm: float = 1.0
    """Longer gradients are cut to this length; 0 cuts none."""
    epochs: float = 3.0
    """How many times the rows are gone through, unless max_steps is set."""
    max_steps: int = 0
    """Optimizer steps; 0 goes by epochs."""
    batch_size: int = 4
    """Rows, or packs, that a device works on at once. The first thing to lower when memory runs out."""
    gradient_accumulation: int = 1
    """Batches that are summed up before a step: a larger batch for time instead of memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: much less memory, about a third slower."""
    balance_loss: float = 0.0
    """Weight of the load-balancing loss; 0 turns it off, as OLMoE advises for tuning (arXiv 2409.02060, 4.3)."""
    seed: int = 0
    """Order of the rows and start of the adapters; the same seed on the same machine gives the same run."""
    log_steps: int = 1
    """Steps between points of the loss curve."""
    eval_steps: int = 20
    """Steps between evaluations on the held-out rows; 0 evaluates and saves once an epoch."""
    save_steps: int = 20
    """Steps between checkpoints, a multiple of eval_steps: the best checkpoint is known by its evaluation."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, besides the best one; older ones are deleted."""
    early_stopping: int = 0
    """Stop after this many evaluations without improvement of loss, or of a classifier's macro-F1; 0 never does."""
    sample_prompts: tuple[str, ...] = ()
    """Answered at every evaluation, to see the change; empty takes the first three prompts of the held-out rows."""
    sample_tokens: int = 48
    """Longest of these answers, in tokens."""
    probe_text: str = ""
    """The text on which the drift of the routing is measured; empty takes the studio's own."""

    def __post_init__(self) -> None:
        _refuse(_problems(vars(self)))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe of a YAML file or a bundled name such as "starter/lora_experts", with `key=value` overrides.

        Raises:
            StudioError: no such file, not a recipe, or bad settings.
        """
        _refuse([f"{_shown(text)} must read setting=value" for text in overrides if "=" not in text])
        return cls.from_settings(read_yaml(find_recipe(path)) | dict(map(_override, overrides)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a form's or file's values; what they leave out has its default.

        Raises:
            StudioError: unknown settings or bad values, all of them named at once.
        """
        settings = {name: _coerce(DEFAULTS.get(name), value) for name, value in settings.items()}
        _refuse(_problems(settings))
        return cls(**settings)

    def to_yaml(self) -> str:
        """All settings, in their sections."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return "\n".join(
            f"# {title}\n" + _dumped({name: values[name] for name in names}) for title, names in sections().items()
        )


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` and `below` leave out the bound itself."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """False for NaN, and for infinities as every bound is finite."""
        return self.low <= value <= self.high and value not in self._left_out()

    def _left_out(self) -> list[float]:
        return [self.low] * self.above + [self.high] * self.below

    def __str__(self) -> str:
        if not (self.above or self.below):
            return f"from {self.low:g} to {self.high:.10g}"
        return (
            f"{'above' if self.above else 'from'} {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"
        )


# The format of `studio/backend/data/formats/labelled.py`.
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
# Settings that are fine alone but not together: which, when, and the remedy.
CLASHES: list[tuple[tuple[str, ...], Callable[..., bool], str]] = [
    (
        ("early_stopping", "eval_share"),
        lambda patience, share: bool(patience) and not share,
        "early_stopping needs held-out rows: set eval_share above 0, or early_stopping to 0",
    ),
    (
        ("save_steps", "eval_steps", "eval_share"),
        lambda save, evaluate, share: bool(share and evaluate and save % evaluate),
        "save_steps must be a multiple of eval_steps, so that the best checkpoint is known: set both to the same",
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
        "class_weights has no meaning for numbers: set it to none, or problem to single_label",
    ),
]


def sections() -> dict[str, list[str]]:
    """The names of the fields by the title of their section."""
    titles: dict[str, list[str]] = {}
    for name in DEFAULTS:
        if name in SECTIONS:
            names = titles[SECTIONS[name]] = []
        names.append(name)
    return titles


def field_help(settings: type = Recipe) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
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
    # Line breaks that are no newline come back from YAML as blanks unless everything beyond ASCII is escaped.
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
    except ValueError:  # Python refuses to write out whole numbers of thousands of digits
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
    """Whether a file can hold it: NUL and halves of surrogate pairs it can't."""
    return isinstance(value, str) and len(value) <= longest and not re.search("[\0\ud800-\udfff]", value)


def _coerce(default: Any, value: Any) -> Any:
    """Numbers and lists as forms and YAML 1.1 deliver them: there `2e-4` is a text, and 3 may come as 3.0."""
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
    """What can't be read stays a text, which the checks then name together with all else."""
    name, _, value = text.partition("=")
    # A file's name may look like YAML, so fields that hold a text take it as it is.
    if isinstance(DEFAULTS.get(name), str):
        return name, value
    try:
        return name, parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        return name, value
