"""The routing that the page shows is the model's: counted again from the exported trace, and computed again."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from jetmoe.routing import RoutingTrace
from studio.analysis.load import load, strongest
from studio.backend.chat.engine import Engine
from studio.backend.hosting.exposure import Exposure
from studio.ui.server import scripts
from tests.builders.decimals import to_fixed
from tests.builders.served import serving
from tests.builders.toy_folder import spelling_toy
from tests.builders.traces import exported_trace
from tests.e2e.studio_page import StudioPage


@pytest.fixture
def answered(studio: StudioPage) -> tuple[StudioPage, RoutingTrace]:
    studio.set_length(40)
    return ask(studio, "Say 7")


def ask(studio: StudioPage, question: str) -> tuple[StudioPage, RoutingTrace]:
    """The page, and the trace in its exported conversation."""
    studio.ask_and_wait(question)
    trace = exported_trace(studio.export())
    expect(studio.page.locator(".rp-root")).to_have_attribute("data-tokens", str(len(trace)))
    return studio, trace


def test_the_page_equals_a_recount_with_the_starter(starter_page: StudioPage, starter_engine: Engine):
    """And the trace is what the model routes when it reads the same tokens in one pass."""
    starter_page.set_length(40)
    studio, trace = ask(starter_page, "Write a Python function that adds two numbers.")
    answer, prompt = trace[int(trace.is_prompt.sum()) :], trace[: int(trace.is_prompt.sum())]
    expected = load(answer, "group").reshape(len(trace.experts), -1)
    np.testing.assert_allclose(studio.load_table(), expected, atol=5.1e-5)

    for layer, kind in [(0, 0), (17, 1), (29, 0)]:
        studio.set_layer(layer)
        studio.kind(trace.kinds[kind]).check(force=True)
        shown = studio.page.locator(".rp-answer-tokens .rp-num").all_inner_texts()
        assert [int(number) for number in shown] == strongest(answer, "group")[layer, kind].tolist()

    studio.page.locator("#routing").get_by_role("radio", name="prompt").check(force=True)
    expected = load(prompt, "group").reshape(len(trace.experts), -1)
    np.testing.assert_allclose(studio.load_table(), expected, atol=5.1e-5)
    # The experts of a copy would only repeat it.
    expect(studio.page.get_by_text("single experts")).to_be_hidden()

    again = starter_engine.replay(trace.token_ids.tolist(), len(prompt))
    assert again.texts == trace.texts
    same = (np.sort(again.experts, axis=-1) == np.sort(trace.experts, axis=-1)).mean()
    assert same > 0.97, f"{same:.4f} of the assignments agree; only near ties may differ between two orders of sums"


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    """The page of an OLMoE with one router of 64 experts in each layer, and its engine."""
    engine, folder = Engine(), tmp_path_factory.mktemp("model") / "olmoe"
    sizes = {"num_experts": 64, "num_experts_per_tok": 8, "max_position_embeddings": 4096}
    engine.load(str(spelling_toy(folder, family="olmoe", **sizes)), precision="fp32")
    with serving(engine, Exposure()) as url:
        yield url, engine


def test_one_router_of_64_experts_is_recounted_from_its_logits(page: Page, olmoe: tuple[str, Engine]):
    studio, engine = StudioPage(page, olmoe[0]).open(), olmoe[1]
    studio.set_length(30)
    page.locator("#set-seed textarea, #set-seed input").fill("7")
    studio, trace = ask(studio, "Say 7")
    prompt, experts = int(trace.is_prompt.sum()), page.locator(".rp-layer_experts")
    probs = router_probabilities(engine, trace)[:, prompt:]  # [L, T, E]
    gates, selected = probs.topk(8)  # [L, T, K]
    expect(page.locator(".rp-probabilities")).to_be_visible()
    expect(page.get_by_role("radiogroup", name="Router kind")).to_be_hidden()
    expect(page.locator(".rp-expert_map canvas")).to_have_count(1)

    experts.get_by_role("button", name="Show all 64 experts").click()
    for layer in (0, 1):
        studio.set_layer(layer)
        shown = [int(number) for number in page.locator(".rp-answer-tokens .rp-num").all_inner_texts()]
        assert shown == selected[layer, :, 0].tolist()
        counted = selected[layer].flatten().bincount(minlength=64)
        strongest = selected[layer, :, 0].bincount(minlength=64)
        rows = experts.locator("tbody").evaluate("body => [...body.rows].map(row => row.innerText.split(/\\s+/))")
        assert {int(row[0]): (int(row[1]), int(row[4])) for row in rows} == {
            expert: (int(strongest[expert]), int(counted[expert])) for expert in range(64)
        }
        assert [int(row[1]) for row in rows] == sorted(strongest.tolist(), reverse=True)
        held = 100 * gates[layer].sum(-1)
        expect(experts).to_contain_text(f"hold {held.mean():.0f} % of the router's probability")
        studio.tokens.nth(4).hover()
        expect(page.locator(".rp-token_detail .rp-line")).to_contain_text(
            f"together {held[4]:.0f} % of the probability"
        )

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@torch.no_grad()
def router_probabilities(engine: Engine, trace: RoutingTrace) -> torch.Tensor:
    """Returns `[L, T, E]`, computed in one pass."""
    assert engine._decoder is not None
    ids = torch.tensor([trace.token_ids.tolist()])
    logits = engine._decoder.model(ids, output_router_logits=True).router_logits
    return torch.stack(logits).view(-1, len(trace), trace.num_experts).softmax(-1)


def test_hover_focus_and_pin_show_one_token_in_every_layer(answered):
    studio, trace = answered
    prompt = int(trace.is_prompt.sum())
    which = studio.page.locator(".rp-which")
    studio.tokens.nth(5).hover()
    expect(which).to_contain_text("token 6 of the answer")
    cells = studio.page.locator(".rp-token_detail .rp-cell")
    expect(cells).to_have_count(4)
    shown = [int(number) for number in studio.page.locator(".rp-token_detail .rp-cell b").all_inner_texts()]
    assert shown == strongest(trace, "group")[:, :, prompt + 5].T.ravel().tolist()
    named = dict(re.findall(r"(\d+) \((\d\.\d\d)\)", cells.nth(1).get_attribute("title")))
    assert [int(expert) for expert in named] == trace.experts[1, 0, prompt + 5].tolist()
    np.testing.assert_allclose([float(gate) for gate in named.values()], trace.gates[1, 0, prompt + 5], atol=0.0051)
    studio.tokens.nth(5).click()
    studio.page.mouse.move(5, 5)
    expect(which).to_contain_text("pinned")
    studio.tokens.nth(5).focus()
    studio.page.keyboard.press("ArrowRight")
    expect(which).to_contain_text("token 7 of the answer")
    studio.page.keyboard.press("End")
    expect(which).to_contain_text(f"token {len(trace) - prompt} of the answer")


def test_the_map_names_chance_and_reads_values_by_keyboard(answered):
    studio, trace = answered
    expect(studio.page.locator(".rp-chance")).to_contain_text("0.500 = 1/2")
    studio.page.locator(".ch-maps canvas").nth(1).focus()
    studio.set_layer(0)
    studio.page.locator(".ch-maps canvas").nth(1).focus()
    studio.page.keyboard.press("ArrowDown")
    answer = trace[int(trace.is_prompt.sum()) :]
    share = to_fixed(load(answer, "group")[0, 1, 0], 3)
    value = studio.page.locator(".rp-expert_map .rp-line")
    expect(value).to_contain_text(f"Layer 0, Feed-forward experts, copy 0: {share}")


def test_a_long_prompt_arrives_complete(studio: StudioPage):
    """Longer than an update carries, so that the page has to fetch rows."""
    studio.set_length(8)
    _, trace = ask(studio, "Why? " * 300)
    prompt = trace[: int(trace.is_prompt.sum())]
    assert len(prompt) > 500
    studio.page.locator("#routing").get_by_role("radio", name="prompt").check(force=True)
    np.testing.assert_allclose(studio.load_table(), load(prompt, "group").reshape(2, -1), atol=5.1e-5)


def test_an_open_table_is_refilled_at_most_once_a_second_while_rows_arrive(studio: StudioPage):
    fills = studio.page.evaluate(
        """async (address) => {
      const { default: Tables } = await import(new URL(address, document.baseURI).href);
      let fills = 0;
      const trace = { id: "x", L: 1, kinds: ["MoE"], count: 0, range: () => [0, trace.count], load: () => [++fills] };
      const panel = { trace, units: 1, single: true, unitName: "expert", part: "answer", settings: { layer: 0 } };
      const root = document.body.appendChild(document.createElement("section"));
      root.id = "alone";
      const tables = new Tables(root, panel), { load } = tables;
      load.root.open = true;
      await new Promise((done) => load.root.addEventListener("toggle", done));
      for (trace.count = 1; trace.count < 100; trace.count++) tables.update();
      return fills;
    }""",
        f"scripts/{scripts.digest()}/routing/views/tables.js",
    )
    assert fills == 2, "when it was opened, and at the first rows"
    expect(studio.page.locator("#alone caption").first).to_contain_text("in 100 tokens")
