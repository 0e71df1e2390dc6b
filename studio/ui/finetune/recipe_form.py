"""Controls for a `Recipe`, generated from its fields, which define names, defaults, bounds and help texts.

    form = RecipeForm()                                   # inside a gr.Blocks
    settings = read_form(dict(zip(NAMES, values)))        # for Recipe.from_settings
    shown = form_values(recipe)                           # new control values, by name

The data, its format and its columns are selected elsewhere on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.backend.recipe import CHOICES, DEFAULTS, PRESETS, RANGES, Recipe, sections
from studio.backend.recipe_labels import LABELS, label
from studio.backend.settings import field_help
from studio.errors import StudioError

ELSEWHERE = ("data", "format", "columns", "encoding")
NAMES = [name for name in DEFAULTS if name not in ELSEWHERE]
"""Settings in the form, in the order of the recipe."""
BASIC = ("preset", "r", "learning_rate", "max_steps", "epochs", "batch_size", "max_length", "eval_share")
"""The most common settings; the others are in a collapsed accordion."""
STEPS = {"learning_rate": 1e-5, "weight_decay": 0.01, "balance_loss": 0.001, "max_grad_norm": 0.1} | dict.fromkeys(
    ("eval_share", "hot_share", "warmup_share"), 0.05
)
"""Step sizes other than 1."""
HELPS = {
    "model": "Base model to fine-tune. The starter needs no GPU.",
    "preset": "Weights that get an adapter: attention experts and key-value projection (attention), MLP experts "
    "(experts), attention experts only (moa), all, routers (router), or the relevant experts of your rows, ESFT (hot).",
}
"""Help texts for the form where those of the recipe don't fit."""
LONGEST = {"prompt": 1000, "specialist": 1400, "sample_prompts": 16 * 1001, "probe_text": 10_000}


class RecipeForm:
    """The controls by name, in page order: the common ones, then all others by section."""

    def __init__(self, models: list[tuple[str, str]]) -> None:
        self._helps, self._models = field_help(Recipe), models
        self.controls: dict[str, Component] = {}
        self._place(["model"])
        with gr.Row(elem_classes="settings"):
            self._place(BASIC)
        with gr.Accordion("All settings", open=False, elem_id="all-settings"):
            for title, names in sections().items():
                others = [name for name in names if name in NAMES and name not in self.controls]
                if others:
                    gr.Markdown(f"#### {title}")
                    with gr.Row(elem_classes="settings"):
                        self._place(others)

    def in_order(self) -> list[Component]:
        """Return the controls in the order of `NAMES`."""
        return [self.controls[name] for name in NAMES]

    def _place(self, names: Any) -> None:
        for name in names:
            self.controls[name] = self._control(name)

    def _control(self, name: str) -> Component:
        default = _shown(name, DEFAULTS[name])
        common: dict[str, Any] = {
            "label": _label(name), "info": HELPS.get(name, self._helps.get(name, "")),
            "elem_id": f"recipe-{name}", "min_width": 220,
        }  # fmt: skip
        if name == "task":  # chosen by what the rows are used for
            return gr.Textbox(default, visible="hidden", elem_id=common["elem_id"])
        if name == "model":
            return gr.Dropdown(self._models, value=default, **common)
        if name == "preset":
            return gr.Dropdown(list(PRESETS), value=default, multiselect=True, **common)
        if name in CHOICES:
            return gr.Dropdown(list(CHOICES[name]), value=default, **common)
        match DEFAULTS[name]:
            case bool():
                return gr.Checkbox(default, **common)
            case int() | float():
                # No bounds here: the recipe reports all invalid values at once, with valid ranges.
                return gr.Number(default, step=STEPS.get(name, 1), **common)
            case tuple():
                return gr.Textbox(default, lines=3, max_length=LONGEST[name], **common)
        return gr.Textbox(default, lines=2, max_length=LONGEST[name], **common)


def form_values(recipe: Recipe) -> dict[str, Any]:
    """Return the control values for a recipe, by name."""
    return {name: _shown(name, getattr(recipe, name)) for name in NAMES}


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings for `Recipe.from_settings`, which checks them, from the values of the controls.

    Raises:
        StudioError: the names don't match the form, for example because the page is older than the server.
    """
    if set(values) != set(NAMES):
        raise StudioError("This form is from another version of the studio. Reload the page; your input is kept.")
    return {name: _read(name, value) for name, value in values.items()}


def _shown(name: str, value: Any) -> Any:
    if name == "preset":
        return value.split("+")
    return "\n".join(value) if isinstance(value, tuple) else value


def _read(name: str, value: Any) -> Any:
    if name == "preset":
        return "+".join(map(str, value)) if isinstance(value, list) else value
    if isinstance(DEFAULTS[name], tuple):
        return tuple(line for line in str(value or "").splitlines() if line.strip())
    if name in RANGES and value is None:
        return ""  # an empty field, which `Recipe` rejects
    return value


def _label(name: str) -> str:
    """Return the label of a setting, with its name in parentheses, which messages use, where they differ much."""
    return f"{label(name)} ({name})" if name in LABELS else label(name)
