"""The studio's appearance: Gradio theme, style sheets and expert colours.

demo.launch(theme=theme(), css=css())
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from studio.ui.classify.evaluation.view import style as evaluation_style
from studio.ui.finetune.runs.runs_panel import style as runs_style
from studio.ui.routing.routing_panel import style as panel_style

# The Okabe-Ito palette, which is safe for all common kinds of colour blindness. Groups and experts reuse the colours in
# turn, and their number is always shown next to the colour.
EXPERT_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8a8a8a")
TINT = {"light": 0.24, "dark": 0.34}
"""Share of the expert's colour in a token's background; text on it keeps a contrast of at least 4.5."""
SURFACE = {"light": "#ffffff", "dark": "#161b26"}
INK = {"light": "#1c2330", "dark": "#e8ebf2"}

FONT = ("Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("JetBrains Mono", "ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Return the Gradio theme: white cards on grey, and blue for interactive elements."""
    neutral = gr.themes.Color(
        c50="#f6f7f9", c100="#eceef2", c200="#dfe3ea", c300="#c6ccd8", c400="#8d96a8", c500="#5a6375", c600="#4b5568",
        c700="#333c4d", c800="#1d2431", c900="#161b26", c950="#0f131b",
    )  # fmt: skip
    accent = gr.themes.Color(
        c50="#eef4ff", c100="#dbe7fe", c200="#bdd3fd", c300="#90b5fa", c400="#5c8ef2", c500="#3568dd", c600="#2853c0",
        c700="#22449b", c800="#1f3a7d", c900="#1c3366", c950="#14213f",
    )  # fmt: skip
    base = gr.themes.Base(primary_hue=accent, secondary_hue=accent, neutral_hue=neutral, font=FONT, font_mono=MONO)
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color=INK["light"],
        body_text_color_dark=INK["dark"],
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_secondary_background_fill=SURFACE["light"],
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_border_color="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        block_background_fill=SURFACE["light"],
        block_background_fill_dark=SURFACE["dark"],
        block_border_width="1px",
        block_radius="14px",
        block_shadow="none",
        block_label_text_weight="500",
        input_background_fill=SURFACE["light"],
        input_background_fill_dark=SURFACE["dark"],
        input_radius="10px",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
        button_large_radius="10px",
        button_medium_radius="10px",
        button_small_radius="8px",
        button_transition="background-color 0.15s",
    )


def css() -> str:
    colours = "".join(f"--u{index}: {colour}; " for index, colour in enumerate(EXPERT_COLOURS))
    tints = f":root {{ {colours}--tint: {TINT['light']:.0%}; }} .dark {{ --tint: {TINT['dark']:.0%}; }}"
    units = "".join(f".rp-u{index} {{ --unit: var(--u{index}); }} " for index in range(len(EXPERT_COLOURS)))
    ui = Path(__file__).parents[1]
    names = (
        "page/style.css",
        "chat/chat.css",
        "common/charts/charts.css",
        "finetune/finetune.css",
        "classify/classify.css",
    )
    sheets = [(ui / name).read_text(encoding="utf-8") for name in names]
    return "\n".join([tints, units, *sheets, evaluation_style(), panel_style(), runs_style()])
