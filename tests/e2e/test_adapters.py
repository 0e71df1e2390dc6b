"""Adapters in the chat, on a toy model: picking, two answers side by side, what flips against the base, uploads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jetmoe.routing import RoutingTrace
from studio.analysis.flips import flip_shares, flips
from studio.analysis.load import Unit, strongest
from studio.backend.runs.store import RunStore
from tests.builders.adapters import finished_run, make_adapter
from tests.builders.decimals import to_fixed
from tests.builders.served import Steps, ToyStudio
from tests.builders.traces import exported_trace
from tests.e2e.studio_page import SLOW, StudioPage, choose, unfold

QUESTION = "Say 7"
HOSTILE = "Pirate <b>${window.__p=1}"


class Tuned:
    """The toy with two runs that have adapters, and the files of one more in `files`."""

    def __init__(self, toy: ToyStudio, folder: Path) -> None:
        self.url, self.engine, self.model = toy.url, toy.engine, toy.model
        self.files = make_adapter(self.model, folder / "files", seed=3)
        self.lawyer = finished_run(self.model, 1, name="Lawyer").id
        self.pirate = finished_run(self.model, 2, name=HOSTILE).id


@pytest.fixture(scope="module")
def tuned(toy: ToyStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    yield Tuned(toy, tmp_path_factory.mktemp("adapters"))
    for run in RunStore().list():
        RunStore().delete(run.id)


class AdapterPage(StudioPage):
    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.picker = page.locator("#adapter input")
        self.beside = page.locator("#beside input")
        self.base_answers = page.locator("#base-chat .bot.message")
        self.difference = page.locator(".rp-difference")

    def pick(self, name: str) -> None:
        choose(self.page, "adapter", name)
        expect(self.picker).to_have_value(re.compile(re.escape(name)))

    def settle(self, tokens: int = 12, seed: int = 7) -> None:
        self.set_length(tokens)
        self.page.locator("#set-seed textarea, #set-seed input").fill(str(seed))

    def start_anew(self) -> None:
        self.page.locator("#new-chat").click()
        expect(self.answers).to_have_count(0)

    def side_by_side(self, name: str) -> None:
        self.pick(name)
        self.beside.check()
        expect(self.page.locator("#base-side")).to_be_visible()

    def flipped(self) -> list[bool]:
        """Of the prompt's tokens and the answer's, at the layer and kind that are shown."""
        return self.page.locator("#routing .rp-tok").evaluate_all(
            "nodes => nodes.map(node => node.classList.contains('rp-flip'))"
        )


@pytest.fixture
def chat(page: Page, tuned: Tuned) -> AdapterPage:
    chat = AdapterPage(page, tuned.url)
    chat.open()
    return chat


def test_the_picker_offers_what_fits_and_the_answer_remembers_it(chat: AdapterPage, tuned: Tuned):
    chat.settle()
    expect(chat.picker).to_have_value("No adapter (base model)")
    expect(chat.beside).to_be_disabled()
    base = chat.ask_and_wait(QUESTION)
    expect(chat.page.locator(".rp-compare")).to_be_hidden()
    chat.pick("Lawyer")
    expect(chat.beside).to_be_enabled()
    chat.start_anew()
    assert chat.ask_and_wait(QUESTION) != base
    expect(chat.page.locator("#stats")).to_contain_text("Lawyer")
    answer = chat.export()["turns"][1]["answer"]
    assert answer["adapter"] == tuned.lawyer and answer["adapter_title"].startswith("Lawyer")


def test_an_adapter_that_is_trained_meanwhile_is_offered_at_once(chat: AdapterPage, tuned: Tuned):
    chat.pick("Lawyer")
    late = finished_run(tuned.model, 4, name="Late").id
    chat.page.locator("#box textarea").click()
    chat.picker.click()
    expect(chat.page.get_by_role("option", name="Late")).to_be_visible()
    expect(chat.picker).to_have_value("Lawyer")
    chat.page.keyboard.press("Escape")
    chat.page.locator("#box textarea").click()
    chat.pick("Late")
    RunStore().delete(late)
    chat.ask(QUESTION)
    expect(chat.toast).to_contain_text("was deleted or belongs to another model", timeout=SLOW)
    expect(chat.box).to_have_value(QUESTION)
    assert chat.questions.count() == 0
    chat.picker.click()
    expect(chat.page.get_by_role("option", name="Late – no longer available")).to_be_visible()
    chat.open()
    expect(chat.picker).to_have_value("No adapter (base model)")
    chat.picker.click()
    expect(chat.page.get_by_role("option", name="Late")).to_have_count(0)


def test_the_choice_outlives_a_refresh_and_the_address_makes_one(chat: AdapterPage, tuned: Tuned):
    chat.open(f"?adapter={tuned.pirate}")
    expect(chat.picker).to_have_value(re.compile("Pirate"))
    expect(chat.page).to_have_url(tuned.url)
    chat.side_by_side("Lawyer")
    chat.open()
    expect(chat.picker).to_have_value("Lawyer")
    expect(chat.beside).to_be_checked()
    expect(chat.page.locator("#base-side")).to_be_visible()
    chat.open("?adapter=nonsense")
    expect(chat.toast).to_contain_text("was deleted or belongs to another model")
    expect(chat.picker).to_have_value("Lawyer")


def test_side_by_side_both_answer_with_one_seed(chat: AdapterPage):
    chat.settle()
    alone = chat.ask_and_wait(QUESTION)
    chat.start_anew()
    chat.side_by_side("Lawyer")
    own = chat.ask_and_wait(QUESTION)
    expect(chat.page.locator("#sides h2")).to_have_text(["Lawyer", "Base model"])
    assert chat.base_answers.last.inner_text() == alone != own
    chat.ask_and_wait("And 8?")
    expect(chat.base_answers).to_have_count(2)
    before = [chat.answers.all_inner_texts(), chat.base_answers.all_inner_texts()]
    chat.open()
    expect(chat.base_answers).to_have_count(2)
    assert [chat.answers.all_inner_texts(), chat.base_answers.all_inner_texts()] == before


def test_stop_keeps_what_the_adapter_has_written_and_the_base_is_not_asked(chat: AdapterPage, steps: Steps):
    chat.settle(tokens=3000)
    chat.side_by_side("Lawyer")
    chat.ask(QUESTION)
    chat.let_through(steps, 4)
    chat.stop.click()
    partial = chat.wait_until_stopped(steps)
    expect(chat.page.locator("#stats")).to_contain_text("stopped")
    expect(chat.base_answers.last).to_contain_text("The base model was not asked; this is the answer of Lawyer")
    chat.settle(tokens=24)
    chat.ask_and_wait("And 8?")
    assert chat.answers.first.inner_text() == partial
    expect(chat.base_answers.last).not_to_contain_text("not asked")


def test_retry_edit_undo_export_and_import_keep_both_sides(chat: AdapterPage, steps: Steps):
    steps.allow()
    chat.settle()
    chat.side_by_side(HOSTILE[:6])
    chat.ask_and_wait(QUESTION)
    first = [chat.answers.last.inner_text(), chat.base_answers.last.inner_text()]
    document = chat.export()
    assert document["turns"][1]["base"]["answer"]["trace"]
    chat.retry(steps)
    assert [chat.answers.last.inner_text(), chat.base_answers.last.inner_text()] == first
    chat.page.locator("#chat").get_by_label("edit").first.click()
    chat.page.locator("#chat textarea").fill("Say 9")
    chat.page.locator("#chat").get_by_label("submit").first.click()
    expect(chat.page.locator("#base-chat .user.message")).to_have_text("Say 9", timeout=SLOW)
    chat.wait()
    chat.page.locator("#chat").get_by_label("undo").first.click()
    expect(chat.base_answers).to_have_count(0)
    expect(chat.box).to_have_value("Say 9")
    chat.pick("No adapter")
    expect(chat.page.locator("#base-side")).to_be_hidden()
    chat.load(document)
    expect(chat.base_answers).to_have_count(1, timeout=SLOW)
    expect(chat.page.locator("#sides h2")).to_have_text([HOSTILE, "Base model"])
    assert [chat.answers.last.inner_text(), chat.base_answers.last.inner_text()] == first


def test_what_flips_is_framed_and_counted(chat: AdapterPage, tuned: Tuned):
    chat.settle(tokens=24)
    chat.pick("Lawyer")
    chat.ask_and_wait(QUESTION)
    expect(chat.difference).to_be_hidden()
    assert not any(chat.flipped())
    chat.page.get_by_role("button", name="Compare with base model").click()
    expect(chat.difference).to_be_visible(timeout=SLOW)
    trace = exported_trace(chat.export())
    base = replayed(tuned, trace)
    check_strip(chat, base, trace, "group")
    check_cells(chat, base, trace)
    chat.page.get_by_text("single experts").click()
    expect(chat.page.locator(".rp-check input")).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")
    check_strip(chat, base, trace, "expert")
    text = chat.difference.inner_text()
    chat.open()
    expect(chat.difference).to_have_text(text)


def check_strip(chat: AdapterPage, base: RoutingTrace, trace: RoutingTrace, unit: Unit) -> None:
    """Every frame and title in three routers, and the sentence above them."""
    for layer, kind in ((1, 1), (0, 0), (1, 0)):
        chat.set_layer(layer)
        chat.kind(trace.kinds[kind]).check(force=True)
        expected = flips(base, trace, unit)[layer, kind]
        assert chat.flipped() == expected.tolist()
        for token in expected.nonzero()[0].tolist():
            names = [int(strongest(each, unit)[layer, kind, token]) for each in (base, trace)]
            node = chat.page.locator("#routing .rp-tok").nth(token)
            assert node.get_attribute("title") == f"base: {names[0]}, adapter: {names[1]}"
    shares, names = flip_shares(base, trace, unit), {"group": "copies", "expert": "experts"}
    text = chat.difference.inner_text()
    start = f"{percent(shares.all)} of the strongest {names[unit]} differ from the base model, over all layers"
    assert text.startswith(start)
    assert f"(Attention {percent(shares.by_kind['MoA'])}, Feed-forward {percent(shares.by_kind['MoE'])})" in text


def check_cells(chat: AdapterPage, base: RoutingTrace, trace: RoutingTrace) -> None:
    """The view of one token, after the first flip of the answer is pointed at."""
    flipped = flips(base, trace, "group")[:, :, int(trace.is_prompt.sum()) :]  # [L, N, T]
    token = int(flipped.any(axis=(0, 1)).argmax())
    chat.tokens.nth(token).hover()
    cells = chat.page.locator(".rp-token_detail .rp-cell")
    shown = cells.evaluate_all("nodes => nodes.map(node => node.classList.contains('rp-flip'))")
    assert any(shown) and shown == flipped[:, :, token].T.ravel().tolist()
    assert "→" in cells.nth(shown.index(True)).inner_text()


def replayed(tuned: Tuned, trace: RoutingTrace) -> RoutingTrace:
    return tuned.engine.replay(trace.token_ids.tolist(), int(trace.is_prompt.sum()))


def percent(share: float) -> str:
    return f"{to_fixed(100 * share, 1 if 0 < share < 0.1 else 0)} %"


def test_side_by_side_compares_by_itself_and_the_bases_answer_has_its_own_routing(chat: AdapterPage):
    chat.settle()
    chat.side_by_side("Lawyer")
    chat.ask_and_wait(QUESTION)
    expect(chat.difference).to_be_visible()
    expect(chat.page.locator("#routing .rp-flip.rp-tok").first).to_be_attached()
    chat.base_answers.last.click()
    expect(chat.page.locator(".rp-status")).to_contain_text("answer 1 of the base")
    expect(chat.page.locator(".rp-compare")).to_be_hidden()
    assert not any(chat.flipped())
    chat.answers.last.click()
    expect(chat.difference).to_be_visible()


def test_an_uploaded_adapter_is_picked(chat: AdapterPage, tuned: Tuned, tmp_path: Path):
    chat.settle()
    unfold(chat.page, "Adapters")
    bad = tmp_path / "adapter_model.safetensors"
    bad.write_bytes(b"junk")
    upload(chat, [bad])
    expect(chat.toast.last).to_contain_text("An adapter is adapter_config.json and", timeout=SLOW)
    chat.page.get_by_test_id("toast-close").last.click()
    expect(chat.picker).to_have_value("No adapter (base model)")
    chat.page.locator("#adapter-name input, #adapter-name textarea").fill("Mine <i>")
    upload(chat, [tuned.files / "adapter_config.json", tuned.files / "adapter_model.safetensors"])
    expect(chat.picker).to_have_value("Mine <i>", timeout=SLOW)
    expect(chat.beside).to_be_enabled()
    chat.ask_and_wait(QUESTION)
    expect(chat.page.locator("#stats")).to_contain_text("Mine <i>")
    chat.page.once("dialog", lambda dialog: dialog.dismiss())
    delete = chat.page.get_by_role("button", name="Delete adapter")
    delete.click()
    expect(chat.picker).to_have_value("Mine <i>")
    chat.page.once("dialog", lambda dialog: dialog.accept())
    delete.click()
    expect(chat.toast.last).to_contain_text("Mine <i> was deleted", timeout=SLOW)
    expect(chat.picker).to_have_value("No adapter (base model)")


def upload(chat: AdapterPage, files: list[Path]) -> None:
    with chat.page.expect_file_chooser() as chooser:
        chat.page.locator("#adapter-upload").click()
    chooser.value.set_files(files)


@pytest.mark.parametrize("size", [(390, 844)])
def test_a_phone_shows_both_sides_below_each_other(chat: AdapterPage, size):
    chat.settle()
    chat.side_by_side("Lawyer")
    chat.ask_and_wait("a-very-long-word" + "x" * 100)
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    own, base = chat.page.locator("#own-side").bounding_box(), chat.page.locator("#base-side").bounding_box()
    assert own["y"] + own["height"] <= base["y"] and base["width"] > 300


def test_picking_and_comparing_by_keyboard_alone(chat: AdapterPage):
    chat.settle()
    chat.picker.focus()
    expect(chat.picker).to_have_attribute("aria-activedescendant", re.compile("option-0$"))
    chat.page.keyboard.press("ArrowDown")
    expect(chat.picker).to_have_attribute("aria-activedescendant", re.compile("option-1$"))
    chat.page.keyboard.press("Enter")
    expect(chat.picker).not_to_have_value("No adapter (base model)")
    expect(chat.beside).to_be_enabled()
    chat.page.keyboard.press("Tab")
    expect(chat.beside).to_be_focused()
    chat.page.keyboard.press("Space")
    expect(chat.page.locator("#base-side")).to_be_visible()
    chat.page.keyboard.press("Space")
    expect(chat.page.locator("#base-side")).to_be_hidden()
    chat.ask_and_wait(QUESTION)
    chat.page.get_by_role("button", name="Compare with base model").focus()
    chat.page.keyboard.press("Enter")
    expect(chat.difference).to_be_visible()


def test_chat_with_a_run_begins_side_by_side_with_prompts_of_its_rows(chat: AdapterPage, tuned: Tuned):
    chat.set_length(4)
    chat.ask_and_wait(QUESTION)
    events = RunStore().get(tuned.lawyer).events
    for prompt in ("One <b>?", "Two?", "Three?", "Four?"):
        events.append("sample", 1, {"prompt": prompt, "answer": "…"})
    chat.open(f"?adapter={tuned.lawyer}")
    expect(chat.page.locator("#chat .example")).to_have_text(["One <b>?", "Two?", "Three?"])
    expect(chat.beside).to_be_checked()
    assert chat.questions.count() == 0
    chat.page.locator("#chat .example").nth(1).click()
    expect(chat.base_answers).to_have_count(1, timeout=SLOW)
