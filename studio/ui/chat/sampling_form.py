"""Controls for `Sampling`, generated from its fields, which define the names, defaults and help texts.

controls = sampling_controls()            # inside a gr.Blocks
sampling = read_sampling(*values)         # in a handler, in the same order
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.backend.chat.engine import Sampling
from studio.backend.chat.model_defaults import NAMES as RECOMMENDED
from studio.backend.chat.model_defaults import ModelDefaults
from studio.backend.hosting import demo
from studio.backend.settings import defaults as studio_defaults
from studio.backend.settings import field_help
from studio.errors import StudioError

# Slider settings that the fields don't define: minimum, maximum, step, unit. All other fields become text boxes.
SLIDERS: dict[str, tuple[float, float, float, str]] = {
    "max_new_tokens": (1, 2048, 1, "tokens"),
    "temperature": (0, 2, 0.05, ""),
    "top_p": (0.05, 1, 0.05, "probability"),
    "top_k": (0, 200, 1, "tokens"),
    "min_p": (0, 1, 0.01, "probability"),
    "repetition_penalty": (1, 2, 0.05, "factor"),
}


def sampling_controls() -> dict[str, Component]:
    """Return one control per field, in field order."""
    helps = field_help(Sampling)
    return {name: _control(name, default, helps[name]) for name, default in studio_defaults(Sampling).items()}


def recommended(defaults: ModelDefaults) -> list[Any]:
    """Return updates for all controls. Those of `RECOMMENDED` get the model's values, else the studio's."""
    values = {name: studio_defaults(Sampling)[name] for name in RECOMMENDED} | defaults.sampling
    return [gr.update(value=values[name]) if name in values else gr.skip() for name in studio_defaults(Sampling)]


def kept(stored: Any, model_id: str | None) -> list[Any] | None:
    """Return the values that this browser stored for the model; None if there are none, or no longer valid ones."""
    if not isinstance(stored, dict) or stored.get("model") != model_id or not isinstance(stored.get("values"), list):
        return None
    try:
        read_sampling(*stored["values"])
    except StudioError:
        return None
    return stored["values"]


def recommendation(title: str, defaults: ModelDefaults) -> str:
    """Return HTML that says where the values of the form come from."""
    if not defaults.sampling:
        return f"<p>{escape(title)} recommends no values: these are the studio's.</p>"
    values = ", ".join(f"{_label(name).lower()} {value:g}" for name, value in defaults.sampling.items())
    return f"<p>{escape(title)} recommends {values} ({defaults.source}). The other values are the studio's.</p>"


def read_sampling(*values: Any) -> Sampling:
    """Return the settings from the values of the controls.

    Raises:
        StudioError: values are invalid (`Sampling` names all of them) or exceed a demo's limits.
    """
    names = list(studio_defaults(Sampling))
    if len(values) != len(names):
        raise StudioError(f"Sampling has {len(names)} settings, not {len(values)}. Reload the page.")
    sampling = Sampling(**{name: _value(name, value) for name, value in zip(names, values, strict=True)})
    if limits := demo.limits():
        limits.check_answer(sampling.max_new_tokens)
    return sampling


def _control(name: str, default: Any, info: str) -> Component:
    label = _label(name)
    if name in SLIDERS:
        lowest, highest, step, unit = SLIDERS[name]
        if name == "max_new_tokens" and (limits := demo.limits()):
            highest = limits.new_tokens
            default = min(default, highest)
        label = f"{label} ({unit})" if unit else label
        return gr.Slider(lowest, highest, default, step=step, label=label, info=info, elem_id=f"set-{name}")
    if name == "stop":
        return gr.Textbox("", label=f"{label} (one per line)", info=info, lines=2, elem_id=f"set-{name}")
    # A text box, because an empty gr.Number sends 0, and a seed of 0 gives the same answer every time.
    return gr.Textbox("", label=label, info=info, lines=1, placeholder="Random if empty", elem_id=f"set-{name}")


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value(name: str, value: Any) -> Any:
    if name == "stop":
        return tuple(line for line in str(value or "").splitlines() if line)
    if name == "seed" and isinstance(value, str):
        return _whole_number(value.strip())
    if isinstance(value, float) and value.is_integer() and name in ("max_new_tokens", "top_k", "seed"):
        return int(value)
    return value


def _whole_number(text: str) -> int | None:
    if not text:
        return None
    if not (text.isdecimal() and len(text) < 20):
        raise StudioError(f"seed must be a whole number or empty, not {text[:30]!r}.")
    return int(text)
