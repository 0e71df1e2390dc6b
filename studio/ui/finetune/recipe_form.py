"""The controls of a `Recipe`, generated from its fields: names, defaults, bounds and help are written there only.

    form = RecipeForm()                                   # inside a gr.Blocks
    settings = read_form(dict(zip(NAMES, values)))        # what Recipe.from_settings takes
    shown = form_values(recipe)                           # new values of the controls, by name

The data is chosen elsewhere on the page, and so are its format and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.backend.recipe import CHOICES, DEFAULTS, PRESETS, RANGES, Recipe, field_help, sections
from studio.errors import StudioError

ELSEWHERE = ("data", "format", "columns")
NAMES = [name for name in DEFAULTS if name not in ELSEWHERE]
"""The settings of the form, in the recipe's order."""
BASIC = ("preset", "r", "learning_rate", "max_steps", "epochs", "batch_size", "max_length", "eval_share")
"""What most people change; all else is folded away."""
STEPS = {"learning_rate": 1e-5, "weight_decay": 0.01, "balance_loss": 0.001, "max_grad_norm": 0.1} | dict.fromkeys(
    ("eval_share", "hot_share", "warmup_share"), 0.05
)
"""How far an arrow key goes, where it isn't 1."""
LABELS = {
    "preset": "What to train", "r": "Rank", "max_length": "Longest row, in tokens",
    "eval_share": "Share of rows held out", "lr_scheduler": "Learning rate schedule",
    "warmup_share": "Warm-up", "max_grad_norm": "Gradient clipping",
    "sample_tokens": "Longest sample answer, in tokens", "insist_on_router": "Train tied routers anyway",
}  # fmt: skip
"""Where the name of a setting says too little; it stands behind, as messages and recipes have it."""
HELPS = {
    "model": "What is tuned. The starter needs no GPU.",
    "preset": "Which weights get an adapter: attention experts and key-value projection (attention), feed-forward "
    "experts (experts), attention experts alone (moa), all, the routers, or the experts that your rows use (hot).",
}
"""Where the help of a file or a command line does not fit a form."""
LONGEST = {"sample_prompts": 16 * 1001, "probe_text": 10_000}


class RecipeForm:
    """The controls by name, in the order of the page: the basic ones, then all others in their sections."""

    def __init__(self, models: list[tuple[str, str]]) -> None:
        self._helps, self._models = field_help(), models
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
        """As `NAMES`."""
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
                # No bounds here: the recipe names all that is wrong at once, with the remedies.
                return gr.Number(default, step=STEPS.get(name, 1), **common)
            case tuple():
                return gr.Textbox(default, lines=3, max_length=LONGEST[name], **common)
        return gr.Textbox(default, lines=2, max_length=LONGEST[name], **common)


def form_values(recipe: Recipe) -> dict[str, Any]:
    """What the controls show of a recipe, by name."""
    return {name: _shown(name, getattr(recipe, name)) for name in NAMES}


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the values that the controls hold, for `Recipe.from_settings`, which checks them.

    Raises:
        StudioError: they are not those of this form, as those of a page that is older than the server.
    """
    if set(values) != set(NAMES):
        raise StudioError("This form is of another version of the studio. Reload the page; what you typed is kept.")
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
        return ""  # an empty field, which is no number
    return value


def _label(name: str) -> str:
    return f"{LABELS[name]} ({name})" if name in LABELS else name.replace("_", " ").capitalize()
