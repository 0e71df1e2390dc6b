"""The panel of training runs: no text is ever markup."""

import re

import gradio as gr
import pytest

from studio.ui.finetune.runs.runs_panel import opened, runs_panel, style


@pytest.fixture
def panel() -> gr.HTML:
    return runs_panel()


def test_the_template_is_constant(panel):
    for sign in ("{{", "${", "@children"):
        assert sign not in panel.html_template
    assert not panel.css_template


def test_its_events_are_known(panel):
    with gr.Blocks():
        runs_panel().act(lambda: None)
    assert callable(panel.act) and callable(panel.open)


def test_gradio_understands_the_style_sheet():
    """It puts a prefix before every part of a selector that follows a comma, and drops container queries."""
    assert not re.search(r"\([^(){}]*,[^(){}]*\)[^{};]*\{", style()) and "@container" not in style()


def test_a_run_can_be_opened_again():
    assert opened("a") != opened("a") and '"open": "a"' in opened("a")
