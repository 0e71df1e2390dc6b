"""The settings of a training run: one pydantic dataclass, built from YAML, `key=value` overrides or a form.

    recipe = Recipe.load("starter/lora_experts", ["data=rows.csv", "learning_rate=1e-4"])
    recipe = Recipe.from_settings({"data": "rows.csv", "r": 8})
    recipe.to_yaml()                      # a recipe file that loads as the same recipe

All invalid settings are reported in one message, before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import MaxLen, MinLen
from pydantic import AfterValidator, Field

from studio.backend.recipe_conflicts import CLASHES, NO_PROMPT
from studio.backend.recipe_file import find_recipe, parse_yaml, read_yaml
from studio.backend.settings import Settings, Text, choices, defaults, ranges, settings
from studio.errors import StudioError

# Section titles by the first field of the section; the form, `to_yaml` and the bundled files use this order.
SECTIONS = {
    "model": "Model",
    "data": "Data",
    "preset": "Adapter",
    "learning_rate": "Optimisation",
    "log_steps": "Evaluation and checkpoints",
}

# How `data` names a data set of the Hugging Face Hub, which `studio/backend/data/hub_dataset.py` reads.
HUB_PREFIX = "hub:"
PRESETS = ("attention", "experts", "moa", "all", "router", "hot")
MOST_PROMPTS, LONGEST_PROMPT = 16, 1000
MOST_COLUMNS, LONGEST_COLUMN = 20, 100
EXPECTED_PRESETS = f"one or more of {', '.join(PRESETS)}, each once and joined by +"
EXPECTED_COLUMNS = f"up to {MOST_COLUMNS} pairs of field: column, each up to {LONGEST_COLUMN} characters"
AUTO_PROMPT = "auto"
EXPECTED_PROMPT = f"auto, or a text with {{text}} exactly once and up to {LONGEST_PROMPT} characters"
EXPECTED_SPECIALIST = "empty, a replica such as replica 1, or experts such as experts 3,17,40"
EXPECTED_PROMPTS = f"a list of up to {MOST_PROMPTS} texts of up to {LONGEST_PROMPT} characters"


def _presets(text: str) -> str:
    names = text.split("+")
    if not set(names) <= set(PRESETS) or len(names) != len(set(names)):
        raise ValueError(EXPECTED_PRESETS)
    return text


def _prompt(text: str) -> str:
    if text != AUTO_PROMPT and text.count(NO_PROMPT) != 1:
        raise ValueError(EXPECTED_PROMPT)
    return text


def _specialist(text: str) -> str:
    if text and not re.fullmatch(r"replica \d{1,3}|experts \d{1,3}(, ?\d{1,3}){0,255}", text):
        raise ValueError(EXPECTED_SPECIALIST)
    return text


Specialist = Annotated[str, AfterValidator(_specialist)]
Presets = Annotated[str, AfterValidator(_presets)]
SamplePrompt = Annotated[Text, MinLen(1), MaxLen(LONGEST_PROMPT)]
Column = Annotated[Text, MinLen(1), MaxLen(LONGEST_COLUMN)]
Columns = Annotated[dict[Column, Column], MaxLen(MOST_COLUMNS)]


@settings
class Recipe(Settings):
    """All settings of a run.

    Raises:
        StudioError: values of the wrong type, out of range or in conflict; the message lists all of them.
    """

    model: Text = Field(
        default="starter",
        max_length=1000,
        description="Model id from the catalog, the path of a model folder, or owner/name on the Hub.",
    )
    precision: Literal["auto", "nf4", "bf16", "fp32"] = Field(
        default="auto",
        description=(
            "Precision of the frozen weights: nf4 (4-bit), bf16 or fp32; auto is nf4 on a GPU, else the model's "
            "default."
        ),
    )
    task: Literal["chat", "classify"] = Field(
        default="chat",
        description="chat tunes the model's answers; classify trains a classification head on labelled texts.",
    )
    data: Text = Field(
        default="",
        max_length=1000,
        description=(
            "Data file (csv, tsv, json, jsonl, parquet, txt), the name of a bundled sample, or hub:OWNER/NAME[:SPLIT]."
        ),
    )
    format: Text = Field(
        default="auto",
        max_length=50,
        description="Format of the rows, such as messages or alpaca; auto detects it from the first rows.",
    )
    columns: Columns = Field(
        default_factory=dict,
        json_schema_extra={"expected": EXPECTED_COLUMNS},
        description="Columns of the format's fields, as field: column; empty finds the columns by name.",
    )
    encoding: Text = Field(
        default="auto",
        max_length=20,
        description="Encoding of a text file, such as utf-8, cp1251 or gb18030; auto detects it.",
    )
    problem: Literal["single_label", "multi_label", "regression"] = Field(
        default="single_label",
        description=(
            "For classify: single_label, multi_label (labels in a list, or joined by ; or |) or regression (a number)."
        ),
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="For classify: balanced gives rows with rare labels more weight, so that all labels count equally.",
    )
    method: Literal["lora", "probe"] = Field(
        default="lora",
        description=(
            "For classify: probe fits the head to the frozen model's features, without training; lora goes on from "
            "that head."
        ),
    )
    prompt: Annotated[Text, MaxLen(LONGEST_PROMPT), AfterValidator(_prompt)] = Field(
        default=NO_PROMPT,
        json_schema_extra={"expected": EXPECTED_PROMPT},
        description=(
            "For classify: prompt around each text, with {text} where the text belongs; auto asks for the label by the "
            "name of its column."
        ),
    )
    on_bad_rows: Literal["skip", "stop"] = Field(
        default="skip",
        description="Rows that can't be used: skip leaves them out and lists them, stop refuses the file.",
    )
    eval_share: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of rows held out for evaluation; 0 trains on all rows and evaluates nothing.",
    )
    max_length: int = Field(
        default=512,
        ge=16,
        le=131_072,
        description="Maximum tokens per row, or per pack; longer rows are cut. Memory and time grow with it.",
    )
    packing: bool = Field(
        default=True,
        description=(
            "For chat: short rows share packs of max_length without attending to each other. Faster, same result."
        ),
    )
    preset: Presets = Field(
        default="all",
        json_schema_extra={"expected": EXPECTED_PRESETS},
        description=(
            "Weights that get an adapter: attention, experts, moa (attention without kv_proj), all, router, hot; + "
            "joins."
        ),
    )
    hot_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description=(
            "For hot: train only the relevant experts (ESFT), which together take this share of the routing on your "
            "data."
        ),
    )
    specialist: Specialist = Field(
        default="",
        json_schema_extra={"expected": EXPECTED_SPECIALIST},
        description=(
            "Route every token to these experts, and train only them: replica 1, or experts 3,17,40. Empty: off."
        ),
    )
    insist_on_router: bool = Field(
        default=False,
        description="Train routers even if the model ties them; this breaks the tie, and broken slot sets are counted.",
    )
    r: int = Field(default=16, ge=1, le=512, description="LoRA rank. A higher rank learns more and needs more memory.")
    lora_alpha: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="LoRA scaling: the adapter's change is multiplied by lora_alpha / r.",
    )
    learning_rate: float = Field(
        default=2e-4,
        gt=0,
        le=0.1,
        description="Peak learning rate; lower it if the loss jumps, raise it if nothing changes.",
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine",
        description="Schedule of the learning rate after the warm-up: cosine, linear or constant.",
    )
    warmup_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of all steps in the warm-up, where the learning rate rises from 0.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight decay, which pulls adapter weights towards 0 at every step; rarely needed.",
    )
    max_grad_norm: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Maximum gradient norm; longer gradients are clipped, and 0 turns clipping off.",
    )
    epochs: float = Field(
        default=3.0, gt=0, le=1000, description="Passes over the training rows, unless max_steps is set."
    )
    max_steps: int = Field(
        default=0, ge=0, le=10_000_000, description="Number of optimizer steps; 0 trains for epochs."
    )
    batch_size: int = Field(
        default=4,
        ge=1,
        le=4096,
        description="Rows, or packs, per batch and device. Lower this first if memory runs out.",
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Batches per optimizer step: a larger effective batch that costs time instead of memory.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations twice instead of storing them: much less memory, about a third slower.",
    )
    balance_loss: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "Weight of the load-balancing loss; 0 turns it off, as OLMoE advises for fine-tuning (arXiv 2409.02060, "
            "4.3)."
        ),
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of row order and initial adapter; the same seed on the same machine gives the same run.",
    )
    log_steps: int = Field(default=1, ge=1, le=1_000_000, description="Steps between points of the loss curve.")
    eval_steps: int = Field(
        default=20,
        ge=0,
        le=1_000_000,
        description="Steps between evaluations on the held-out rows; 0 evaluates and saves once per epoch.",
    )
    save_steps: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description=(
            "Steps between checkpoints; a multiple of eval_steps, because evaluations find the best checkpoint."
        ),
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="Number of checkpoints to keep besides the best one; older ones are deleted.",
    )
    early_stopping: int = Field(
        default=0,
        ge=0,
        le=1000,
        description=(
            "Stop after this many evaluations without a better loss, or a classifier's macro-F1; 0 turns it off."
        ),
    )
    sample_prompts: tuple[SamplePrompt, ...] = Field(
        default=(),
        max_length=MOST_PROMPTS,
        json_schema_extra={"expected": EXPECTED_PROMPTS},
        description="Prompts to answer at every evaluation; empty uses the first three prompts of the held-out rows.",
    )
    sample_tokens: int = Field(default=48, ge=1, le=2048, description="Maximum tokens per sample answer.")
    probe_text: Text = Field(
        default="",
        max_length=10000,
        description="Text on which routing drift is measured; empty uses the studio's own.",
    )

    @classmethod
    def conflicts(cls, values: Mapping[str, Any], wrong: set[str]) -> list[str]:
        return [
            remedy
            for names, clash, remedy in CLASHES
            if wrong.isdisjoint(names) and clash(*(values[name] for name in names))
        ]

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Load a YAML file or a bundled recipe such as "starter/lora_experts", with `key=value` overrides.

        Raises:
            StudioError: no such file, not a recipe, or invalid settings.
        """
        if shapeless := [f"{text[:60]!r} must have the form setting=value" for text in overrides if "=" not in text]:
            raise StudioError("Change these settings: " + "; ".join(shapeless) + ".")
        return cls.from_settings(read_yaml(find_recipe(path)) | dict(map(_override, overrides)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """Build a recipe from the values of a form or a file; missing settings get their defaults.

        Raises:
            StudioError: unknown settings or invalid values; the message lists all of them.
        """
        return cls(**{str(name): _coerce(DEFAULTS.get(name), value) for name, value in settings.items()})

    def to_yaml(self) -> str:
        """Return all settings as YAML, in sections."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return "\n".join(
            f"# {title}\n" + _dumped({name: values[name] for name in names}) for title, names in sections().items()
        )


DEFAULTS = defaults(Recipe)
CHOICES = choices(Recipe)
RANGES = ranges(Recipe)


def sections() -> dict[str, list[str]]:
    """Return the field names by section title."""
    titles: dict[str, list[str]] = {}
    for name in DEFAULTS:
        if name in SECTIONS:
            names = titles[SECTIONS[name]] = []
        names.append(name)
    return titles


def _dumped(values: dict[str, Any]) -> str:
    # YAML reads NEL, LS and PS line breaks back as spaces unless all non-ASCII characters are escaped.
    texts = "".join(text for value in values.values() for text in _texts(value))
    readable = not re.search("[\x85\u2028\u2029]", texts)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=readable)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []


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
