"""What the routing panel is sent, read back as the page reads it."""

import base64
import json

import gradio as gr
import numpy as np
import pytest

from studio.analysis.flips import flips
from studio.analysis.load import strongest
from studio.backend.chat.alternatives import Alternative
from studio.ui.common.trace_store import traces
from studio.ui.routing.routing_panel import FETCHED, PUSHED, alternatives, can_branch, message, routing_panel, rows
from tests.builders.traces import make_trace

NOBODY = gr.Request(state={"owner": ""})


def decoded(sent: dict, trace) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    L, N, _, K = trace.experts.shape
    raw = {name: base64.b64decode(value) for name, value in sent.items()}
    experts = np.frombuffer(raw["e"], np.uint8).reshape(-1, L, N, K).transpose(1, 2, 0, 3)
    gates = np.frombuffer(raw["g"], "<u2").reshape(-1, L, N, K).transpose(1, 2, 0, 3) / 65535
    entropy = np.frombuffer(raw["h"], "<u2").reshape(-1, L, N).transpose(1, 2, 0) / 65535
    return experts, gates, entropy, json.loads(raw["t"])


def test_a_message_holds_the_rows_from_start_on():
    trace = make_trace()
    sent = json.loads(message("f" * 32, trace, 10, 0, 2, note="answer 1"))
    assert (sent["from"], sent["total"], sent["answer"], sent["answers"]) == (10, 40, 0, 3)
    shape = {"L": 3, "N": 2, "K": 2, "E": 6, "kinds": ["MoA", "MoE"]}
    assert sent["head"] == shape | {
        "groups": [0, 0, 1, 1, 2, 2], "prompt": 10, "tied": True, "gatesSumToOne": True,
    }  # fmt: skip
    experts, gates, entropy, texts = decoded(sent["rows"], trace)
    np.testing.assert_array_equal(experts, trace.experts[:, :, 10:])
    np.testing.assert_allclose(gates, trace.gates[:, :, 10:], atol=1e-5)
    np.testing.assert_allclose(entropy * np.log(6), trace.entropy[:, :, 10:], atol=1e-3)
    assert texts == list(trace.texts[10:])


def test_a_message_of_a_model_whose_gates_are_probabilities():
    trace = make_trace(groups=256, K=8, kinds=("MoE",), held=0.7)
    sent = json.loads(message("f" * 32, trace, 0, 0, 0))
    head = {name: sent["head"][name] for name in ("N", "K", "E", "kinds", "tied", "gatesSumToOne")}
    assert head == {"N": 1, "K": 8, "E": 256, "kinds": ["MoE"], "tied": False, "gatesSumToOne": False}
    experts, gates, _, _ = decoded(sent["rows"], trace)
    np.testing.assert_array_equal(experts, trace.experts)
    np.testing.assert_allclose(gates.sum(axis=-1), 0.7, atol=2e-3)


def test_a_message_is_small_and_the_rest_is_fetched():
    trace = make_trace(tokens=600)
    sent = json.loads(message("f" * 32, trace, 0, 0, 0))
    assert sent["from"] == 600 - PUSHED
    trace_id, start, got = traces.open(trace), 0, []
    while start < 600:
        answer = rows([trace_id, start], NOBODY)
        texts = decoded(answer["rows"], trace)[3]
        assert answer["from"] == start and len(texts) <= FETCHED
        got += texts
        start += len(texts)
    assert got == list(trace.texts)


def test_what_is_otherwise_in_the_base_is_fetched():
    trace, base = make_trace(tokens=600, seed=1), make_trace(tokens=600, seed=0)
    trace_id = traces.open(trace)
    assert json.loads(message(trace_id, trace, 0, 0, 0, adapted=True))["flips"] == {}
    assert rows([trace_id, 0, "base"], NOBODY) == {}
    traces.compare(trace_id, base)
    told = json.loads(message(trace_id, trace, 0, 0, 0, adapted=True))["flips"]
    for unit in ("group", "expert"):
        flipped = flips(base, trace, unit)  # [L, N, T]
        assert told[unit] == pytest.approx([flipped.mean(), flipped[:, 0].mean(), flipped[:, 1].mean()])
        got = []
        while len(got) < 600:
            answer = rows([trace_id, len(got), "base"], NOBODY)
            assert answer["from"] == len(got)
            got += np.frombuffer(base64.b64decode(answer["rows"][unit]), "<u2").reshape(-1, 3, 2).tolist()
        others = np.array(got).transpose(1, 2, 0)  # [L, N, T]
        np.testing.assert_array_equal(others > 0, flipped)
        np.testing.assert_array_equal(others[flipped], strongest(base, unit)[flipped].astype(int) + 1)


def test_an_answer_of_the_base_says_nothing_of_flips():
    trace = make_trace()
    trace_id = traces.open(trace)
    traces.compare(trace_id, trace)
    assert "flips" not in json.loads(message(trace_id, trace, 0, 0, 0))


@pytest.mark.parametrize("part", ["other", None, 1, ["base"], ""])
def test_there_is_no_other_part_to_fetch(part):
    assert rows([traces.open(make_trace()), 0, part], NOBODY) == {}


@pytest.mark.parametrize(
    "request_", [None, {}, [], ["x"], ["x", 0], [7, 0], [None, None], ["", 0, 0], "x", [["x"], 0], ["x", "0"]]
)
def test_anybody_may_ask_and_gets_nothing_without_an_id(request_):
    assert rows(request_, NOBODY) == {}


@pytest.mark.parametrize("start", [-1, 40, 10**9, 1.0, "0", None, True])
def test_starts_outside_of_the_trace_get_nothing(start):
    assert rows([traces.open(make_trace()), start], NOBODY) == {}


def test_alternatives_are_served_to_their_owner_with_what_can_branch():
    trace_id = traces.open(make_trace())
    traces.keep(trace_id, 7, (Alternative(5, " a", 0.0, True, False), Alternative(6, "\ufffd", -1.0, False, False)))
    listed = alternatives([trace_id, 7], NOBODY)["tokens"]
    assert listed[0] == {"id": 5, "text": " a", "p": 1.0, "chosen": True, "branches": True}
    assert not listed[1]["branches"] and not can_branch(Alternative(7, "<|im_end|>", -1.0, False, True))
    for asked in ([trace_id, 8], [trace_id, True], [trace_id], ["0" * 32, 7], None, {}, [[trace_id], 7]):
        assert alternatives(asked, NOBODY) == {}


def test_the_template_is_constant_and_has_no_place_for_text():
    panel = routing_panel()
    for sign in ("{{", "${", "@children"):
        assert sign not in panel.html_template
    assert not panel.css_template


def test_no_text_is_in_a_message_as_it_stands():
    trace = make_trace()
    hostile = type(trace)(**{**trace.__dict__, "texts": ("<script>${alert(1)}</script>{{x}}",) * 40})
    sent = message("f" * 32, hostile, 0, 0, 0)
    assert "script" not in sent and "$" not in sent and "{{x" not in sent
