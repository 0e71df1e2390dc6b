"""The panel of training runs: what anybody may ask of it, and that no text is ever markup."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest

from studio.backend.run_views import RunViews
from studio.backend.runs import RunStore
from studio.ui.runs_panel import opened, runs_panel, style
from tests.studio.toy_runs import toy_run

NOBODY = gr.Request(state={"owner": ""})


def asked(function, data):
    """In a thread, as this one may have the loop of a browser's tests."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, function(data, NOBODY)).result()


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path)


@pytest.fixture
def panel(store) -> gr.HTML:
    return runs_panel(RunViews(store))


def test_the_page_asks_for_the_list_and_for_what_is_new(store, panel):
    toy = toy_run(store, "one").audit().train(3)
    assert [row["id"] for row in asked(panel.run_list, [])["runs"]] == [toy.run.id]
    events = [event.seq for event in toy.run.events.read()]
    assert [event["seq"] for event in asked(panel.run_events, [toy.run.id, 0])["events"]] == events
    assert [event["seq"] for event in asked(panel.run_events, [toy.run.id, 4])["events"]] == events[4:]
    other = toy_run(store, "two")
    assert "error" in panel.run_comparison([toy.run.id, "f" * 36], NOBODY)
    panel = runs_panel(RunViews(store))
    assert len(panel.run_comparison([toy.run.id, other.run.id], NOBODY)["runs"]) == 2


ODD = [None, {}, [], "x", 7, ["x"], [7, 0], [None, None], [["x"], 0], [{}, {}], ["a" * 36], ["a" * 10**6, 0]]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:20])
def test_anybody_may_ask_anything_and_gets_nothing(panel, store, odd):
    toy_run(store, "one")
    assert len(asked(panel.run_list, odd)["runs"]) == 1
    answer = asked(panel.run_events, odd)
    assert (answer["run"], answer["events"], answer["more"]) == (None, [], False)
    assert [*panel.run_comparison(odd, NOBODY)] == ["error"]


@pytest.mark.parametrize("after", [-1, 1.0, "0", None, True, [], 2**70])
def test_odd_places_in_the_events_get_nothing(panel, store, after):
    toy = toy_run(store, "one").audit()
    assert asked(panel.run_events, [toy.run.id, after])["run"] is None


def test_server_functions_do_not_replace_what_the_component_has():
    names = {function.__name__ for function in runs_panel(RunViews(RunStore())).server_fns}
    assert names == {"run_list", "run_events", "run_comparison"}
    assert not [name for name in names if hasattr(gr.HTML(""), name)]


def test_the_template_is_constant_and_scripts_make_no_markup(panel):
    for sign in ("{{", "${", "@children"):
        assert sign not in panel.html_template
    assert not panel.css_template
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|new Function", panel.js_on_load)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", panel.js_on_load), "nothing is loaded from elsewhere"


def test_its_events_are_known(panel):
    with gr.Blocks():
        runs_panel(RunViews(RunStore())).act(lambda: None)
    assert callable(panel.act) and callable(panel.open)


def test_gradio_understands_the_style_sheet():
    """It puts a prefix before every part of a selector that follows a comma, and drops container queries."""
    assert not re.search(r"\([^(){}]*,[^(){}]*\)[^{};]*\{", style()) and "@container" not in style()


def test_a_run_can_be_opened_again():
    assert opened("a") != opened("a") and '"open": "a"' in opened("a")
