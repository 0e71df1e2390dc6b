"""The smaller parts of the page: figures, status line, form, colours, headers."""

import colorsys
import itertools
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from studio.backend.chat.engine import Engine, EngineStatus, Sampling
from studio.backend.chat.loading import Change
from studio.backend.settings import defaults
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from studio.registry import discover
from studio.ui.chat.conversation import Answer
from studio.ui.chat.messages import heading, quota_note, statistics
from studio.ui.chat.sampling_form import field_help, read_sampling
from studio.ui.common.running import Running
from studio.ui.page.status import actions, banner, present
from studio.ui.page.theme import EXPERT_COLOURS, INK, SURFACE, TINT, css
from studio.ui.routing import routing_panel
from tests.builders.contrast import contrast


def test_every_setting_has_help_and_its_default_is_valid():
    assert set(field_help(Sampling)) == {*defaults(Sampling)}
    assert read_sampling(*defaults(Sampling).values()) == Sampling()


def test_the_form_reads_what_controls_send():
    sampling = read_sampling(64.0, 0.7, 0.9, 50.0, 0, 1.1, 7.0, "one\n\ntwo")
    assert (sampling.max_new_tokens, sampling.top_k, sampling.seed, sampling.stop) == (64, 50, 7, ("one", "two"))


@pytest.mark.parametrize(("typed", "seed"), [("", None), (" ", None), (None, None), ("0", 0), (" 42 ", 42)])
def test_an_empty_seed_is_no_seed(typed, seed):
    assert read_sampling(64, 0.7, 0.9, 50, 0.0, 1.1, typed, "").seed == seed


@pytest.mark.parametrize("typed", ["x", "-1", "1.5", "9" * 5000, "٣x"])
def test_a_seed_that_is_no_number_is_refused(typed):
    with pytest.raises(StudioError, match="seed"):
        read_sampling(64, 0.7, 0.9, 50, 0.0, 1.1, typed, "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1, 1e9, "x", None, [1]])
def test_the_form_refuses_other_values(bad):
    with pytest.raises(StudioError):
        read_sampling(bad, 0.7, 0.9, 50, 0.0, 1.1, None, "")


def test_figures_are_those_of_the_answer():
    answer = Answer("starter", "", tuple(range(40)), 30, 0.42, 21.37, 8192, "cancelled")
    shown = statistics(answer)
    for figure in ("21.4 tokens/s", "first token 0.42 s", "10 tokens", "context 40 of 8,192", "stopped"):
        assert figure in shown
    assert statistics(Answer()) == ""


def test_the_name_of_an_adapter_is_text():
    named = Answer("starter", "", (1, 2), 1, context_size=9, adapter="3f2a", adapter_title="<b>Pirate")
    assert ">&lt;b&gt;Pirate</span>" in statistics(named) and "Pirate" not in statistics(Answer(context_size=9))
    assert heading("<b>Pirate") == "<h2>&lt;b&gt;Pirate</h2>"


def test_the_quota_of_an_answer_is_that_on_the_dearest_gpu_and_at_most_a_days():
    # 15 s and 1 s for 12 tokens, each of which may count as 1.5 s.
    assert "up to 24 s of your daily GPU quota" in quota_note(12)
    assert "up to 120 s" in quota_note(2048)


def test_the_status_line_escapes_and_shows_progress():
    shown = banner(EngineStatus("preparing", "starter", "Building <b>", 0.43, "", 0))
    assert "Building &lt;b&gt;" in shown and 'aria-valuenow="43"' in shown
    ready = banner(
        EngineStatus("ready", "starter", "In bf16.", 1.0, "compiled", 8192, title="<b>Starter"), "One trains."
    )
    assert "<summary>&lt;b&gt;Starter is ready. One trains.</summary><p>In bf16. Compiled" in ready
    assert "progressbar" not in ready
    warned = banner(EngineStatus("ready", text="In bf16.", title="Starter", warning="The GPU is not used."))
    assert "<summary>Starter is ready. The GPU is not used.</summary>" in warned, "not folded away"


def test_the_status_line_says_that_the_present_model_still_answers():
    failed = Change("failed", "a/b", "auto", "The download of <b> failed.", back_to="starter")
    status = EngineStatus("ready", "starter", "Ready.", 1.0, "compiled", 8192, title="Starter", change=failed)
    assert "status-failed" in banner(status) and "&lt;b&gt; failed. Starter still answers." in banner(status)
    assert actions(status) == (False, True, True)
    busy = replace(status, change=replace(failed, state="preparing", progress=0.5))
    assert "status-busy" in banner(busy) and 'aria-valuenow="50"' in banner(busy)
    assert actions(busy) == (True, False, False) and actions(replace(status, change=None)) == (False, False, False)
    assert actions(replace(status, change=replace(failed, back_to=None))) == (False, True, False)


def test_the_owner_of_a_space_reads_why_a_model_failed_and_visitors_when_it_is_tried_again():
    failed = Change("failed", "a/b", "auto", "Not now.", reason="The disk is full.", retry_at=time.monotonic() + 30)
    status = EngineStatus("failed", "a/b", "Not now.", change=failed)
    visitor, owner = banner(status), banner(status, is_host=True)
    assert "Not now. The studio tries again in 30 s." in visitor and "disk" not in visitor and "restart" not in visitor
    assert "The disk is full. The studio tries again in 30 s." in owner and "restart the Space" in owner


def _mixed(colour: str, surface: str, share: float) -> str:
    pairs = [(int(colour[at : at + 2], 16), int(surface[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * one + (1 - share) * two):02x}" for one, two in pairs)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("colour", EXPERT_COLOURS)
def test_text_on_an_experts_colour_is_legible(mode, colour):
    """The number is drawn at 85 % opacity, so that is what is measured."""
    ground = _mixed(colour, SURFACE[mode], TINT[mode])
    ink = _mixed(INK[mode], ground, 0.85)
    assert contrast(bytes.fromhex(ground[1:]), bytes.fromhex(ink[1:])) >= 4.5


def test_neighbouring_colours_differ_in_lightness_or_hue():
    for one, two in itertools.pairwise(EXPERT_COLOURS):
        first, second = (colorsys.rgb_to_hls(*(int(c[at : at + 2], 16) / 255 for at in (1, 3, 5))) for c in (one, two))
        assert abs(first[0] - second[0]) > 0.08 or abs(first[1] - second[1]) > 0.15


def test_every_view_has_a_module_and_its_style_is_in_the_page():
    views = discover("studio.ui.routing.views", "VIEW")
    names = ["token_strip", "alternatives", "token_detail", "layer_experts", "expert_map", "tables"]
    assert [view.name for view in views] == names
    folder = Path(routing_panel.__file__).parent / "views"
    for view in views:
        module = (folder / f"{view.name}.js").read_text()
        assert re.search(r"^export default class \w+ \{\n  static title = ", module, re.MULTILINE)
        assert view.style() in css()
    assert json.dumps([view.name for view in views]) in routing_panel.routing_panel().js_on_load


def test_a_rule_for_the_dark_has_one_selector():
    """Gradio puts its own prefix behind the first `.dark` of a list only; the others then lose to the light rule."""
    assert not [selectors for selectors in re.findall(r"[^{}]+(?={)", css()) if selectors.count(".dark ") > 1]


def test_one_answer_a_session_and_stop_reaches_it():
    running = Running()
    with running.answer("one") as run:
        with pytest.raises(StudioError, match="still being written"), running.answer("one"):
            pass
        with running.answer("two") as other:
            running.stop("one")
            assert run.cancel.is_set() and not other.cancel.is_set()
    running.check_idle("one")


def test_the_status_has_a_new_version_when_it_says_something_else():
    engine, jobs = Engine(), Jobs()
    before = present(engine, jobs, "")
    assert present(engine, jobs, "").version == before.version
    jobs.notice = "The list of runs was restored."
    after = present(engine, jobs, "")
    assert after.version != before.version and jobs.notice in after.line
