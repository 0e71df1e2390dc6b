"""Chatting in a real browser with a toy: send, stop, retry, undo, edit, refresh, export, import."""

import json

from playwright.sync_api import Browser, expect

from studio.backend.chat.decoders import Decoders
from studio.ui.chat.conversation_file import FORMAT
from tests.builders.served import Steps, ToyStudio
from tests.builders.traces import exported_trace
from tests.e2e.studio_page import SLOW, StudioPage, shown_token

QUESTION = "What is the capital of France?"
LONG = "Tell a long and detailed story about a whale, a lighthouse keeper and a storm, in ten paragraphs."


def test_text_and_routing_grow_while_the_answer_is_written(studio: StudioPage, steps: Steps):
    studio.set_length(600)
    studio.ask(LONG)
    few, early = studio.let_through(steps, 4), studio.answers.last.inner_text()
    # The text can be ahead of the routing; each token has a letter.
    later = max(few, len(early)) + 10
    assert studio.let_through(steps, later) < 600 and len(studio.answers.last.inner_text()) > len(early)
    steps.allow()
    studio.wait()
    trace = exported_trace(studio.export())
    expect(studio.tokens).to_have_count(600)
    shown = studio.page.locator(".rp-answer-tokens .rp-text").all_text_contents()
    assert shown == [shown_token(text) for text in trace.texts[int(trace.is_prompt.sum()) :]]
    stats = studio.page.locator("#stats").inner_text()
    assert "600 tokens" in stats and "of 4,096" in stats and "tokens/s" in stats


def test_stop_keeps_the_partial_answer(studio: StudioPage, steps: Steps):
    studio.set_length(3000)
    studio.ask(LONG)
    studio.let_through(steps, 5)
    studio.stop.click()
    partial = studio.wait_until_stopped(steps)
    count = studio.shown_tokens()
    expect(studio.page.locator("#stats")).to_contain_text("stopped")
    studio.set_length(8)
    studio.ask_and_wait("And now in French?")
    assert studio.answers.first.inner_text() == partial
    assert partial and 4 < count < 3000


def test_retry_undo_and_edit(studio: StudioPage, steps: Steps):
    steps.allow()
    studio.set_length(8)
    studio.ask_and_wait(QUESTION)
    studio.retry(steps)
    assert (studio.questions.count(), studio.answers.count()) == (1, 1)
    studio.page.get_by_label("edit").first.click()
    studio.page.locator("#chat textarea").fill("What is the capital of <b>Italy</b>?")
    studio.page.get_by_label("submit").first.click()
    expect(studio.questions.first).to_contain_text("<b>Italy</b>", timeout=SLOW)
    studio.wait()
    studio.page.get_by_label("undo").first.click()
    expect(studio.answers).to_have_count(0)
    expect(studio.box).to_have_value("What is the capital of <b>Italy</b>?")


def test_a_cut_answer_goes_on_and_its_variants_are_kept(studio: StudioPage, steps: Steps):
    steps.allow()
    studio.set_length(8)
    options = studio.page.locator("#chat .options")
    cut = studio.ask_and_wait(QUESTION).partition("\n")[0]
    studio.retry(steps)
    options.get_by_role("button", name="‹ Answer 1 of 2").click()
    expect(studio.answers.last).to_contain_text(cut)
    steps.hold()
    options.get_by_role("button", name="Continue").click()
    expect(studio.stop).to_be_visible()
    steps.allow()
    longer = studio.wait().partition("\n")[0]
    assert longer.startswith(cut)
    expect(studio.tokens).to_have_count(16)
    expect(options.get_by_role("button", name="Answer 2 of 2 ›")).to_be_visible()
    studio.page.get_by_label("edit").last.click()
    studio.page.locator("#chat textarea").fill("No, <b>Rome</b>")
    studio.page.get_by_label("submit").first.click()
    expect(studio.answers.last).to_contain_text("<b>Rome</b>")
    expect(studio.page.locator("#stats")).to_contain_text("edited")


def test_keys_stop_send_and_edit_and_list_themselves(studio: StudioPage, steps: Steps):
    page = studio.page
    studio.set_length(3000)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(studio.box).to_be_in_viewport()
    studio.box.fill(LONG)
    studio.box.press("Control+Enter")
    studio.let_through(steps, 3)
    page.keyboard.press("Escape")
    studio.wait_until_stopped(steps)
    expect(page.locator("#stats")).to_contain_text("stopped")
    studio.box.press("?")
    expect(studio.box).to_have_value("?")
    studio.box.fill("")
    studio.box.press("ArrowUp")
    expect(page.locator("#chat textarea")).to_have_value(LONG)
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("?")
    shown = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(shown).to_contain_text("Stop the answer")
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()


def test_the_theme_is_remembered_and_formulas_are_drawn(studio: StudioPage):
    studio.page.get_by_role("button", name="Dark theme").click()
    studio.open()
    expect(studio.page.locator("body")).to_have_class("dark")
    answer = r"\(x^2\) $$\href{javascript:window.__p=1}{y}$$"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]
    studio.load({"format": FORMAT, "system": "", "turns": turns})
    expect(studio.page.locator("#chat .katex")).to_have_count(2)
    assert studio.page.locator("#chat .katex a").count() == 0


TYPED = (
    "def __init__(self, a*b*c):\n    return 1986.\n\n\n1986. A year\n- <b>not a list</b> &amp; no entity\n"
    "  $$a<b>c$$ \\(x_1 < y\\) \\_ ![image](x.png)\n```\ncode\n```"
)


def test_what_a_person_typed_is_shown_verbatim(studio: StudioPage, steps: Steps):
    steps.allow()
    studio.set_length(2)
    studio.ask_and_wait(TYPED)
    assert typed_text(studio) == TYPED
    studio.page.get_by_label("edit").first.click()
    box = studio.page.locator("#chat textarea")
    box.fill(box.input_value().replace("a*b*c", "d*e*f"))
    studio.page.get_by_label("submit").first.click()
    expect(studio.questions.first).to_contain_text("d*e*f", timeout=SLOW)
    studio.wait()
    assert typed_text(studio) == TYPED.replace("a*b*c", "d*e*f")
    stored = studio.export()
    assert stored["turns"][0]["content"] == TYPED.replace("a*b*c", "d*e*f")
    stored["turns"][0]["content"] = TYPED
    studio.load(stored)
    expect(studio.questions.first).to_contain_text("a*b*c")
    assert typed_text(studio) == TYPED


def typed_text(studio: StudioPage) -> str:
    """What is shown of the first question; a last line break ends the code block."""
    return (studio.questions.first.locator("pre code").text_content() or "").rstrip("\n")


def test_no_seed_is_sent_unless_one_is_typed(studio: StudioPage, steps: Steps):
    """An answer of 16 sampled tokens hardly comes twice; with a seed it does."""
    steps.allow()
    studio.set_length(16)
    question = "Invent a name for a planet, and describe it."
    answers = [studio.ask_and_wait(question)]
    assert studio.retry(steps) != answers[0]
    studio.page.locator("#set-seed textarea, #set-seed input").fill("7")
    assert studio.retry(steps) == studio.retry(steps)


def test_a_refresh_brings_the_conversation_back(studio: StudioPage):
    studio.set_length(8)
    answer = studio.ask_and_wait(QUESTION)
    tokens = studio.shown_tokens()
    studio.open()
    expect(studio.answers).to_have_count(1)
    assert studio.answers.first.inner_text() == answer
    expect(studio.page.locator(".rp-root")).to_have_attribute("data-tokens", str(tokens))


def test_export_new_chat_and_import(studio: StudioPage):
    studio.set_length(8)
    answer = studio.ask_and_wait(QUESTION)
    document = studio.export()
    assert [turn["role"] for turn in document["turns"]] == ["user", "assistant"]
    assert document["turns"][1]["answer"]["trace"]
    studio.page.locator("#new-chat").click()
    expect(studio.answers).to_have_count(0)
    expect(studio.page.locator(".rp-empty")).to_be_visible()
    studio.load(document)
    expect(studio.answers).to_have_count(1, timeout=SLOW)
    assert studio.answers.first.inner_text() == answer
    total = len(document["turns"][1]["answer"]["token_ids"])
    expect(studio.page.locator(".rp-root")).to_have_attribute("data-tokens", str(total))


def test_an_earlier_answer_shows_its_routing_again(studio: StudioPage):
    studio.set_length(8)
    studio.ask_and_wait(QUESTION)
    first = studio.page.locator(".rp-answer-tokens .rp-text").all_inner_texts()
    studio.ask_and_wait("Y en español?")
    expect(studio.page.locator(".rp-answer-tokens .rp-text").first).to_be_visible()
    studio.answers.first.click()
    expect(studio.page.locator(".rp-status")).to_contain_text("answer 1")
    expect(studio.tokens).to_have_count(len(first))
    assert studio.page.locator(".rp-answer-tokens .rp-text").all_inner_texts() == first
    studio.page.get_by_label("Displayed answer").select_option("1")
    expect(studio.page.locator(".rp-status")).to_contain_text("answer 2")


def test_examples_are_asked_with_one_click(studio: StudioPage):
    studio.set_length(4)
    studio.page.locator("#chat .example").first.click()
    expect(studio.questions).to_have_count(1)
    studio.wait()


def test_the_second_person_sees_their_place_in_the_line(
    studio: StudioPage, steps: Steps, browser: Browser, toy: ToyStudio, monkeypatch
):
    monkeypatch.setattr(Decoders, "limit", lambda decoders: 1)  # as where memory holds no second answer
    context = browser.new_context()
    second = StudioPage(context.new_page(), toy.url).open()
    second.set_length(4)
    studio.set_length(3000)
    studio.ask(LONG)
    studio.let_through(steps, 2)
    second.ask(QUESTION)
    expect(second.answers.last).to_contain_text("1 answer ahead of yours", timeout=SLOW)
    studio.stop.click()
    studio.wait_until_stopped(steps)
    assert "ahead" not in second.wait()
    context.close()


def test_empty_messages_and_a_megabyte_stay_in_the_box(studio: StudioPage):
    for text in ("", "   \n"):
        studio.box.fill(text)
        studio.box.press("Enter")
        expect(studio.toast).to_contain_text("empty")
        studio.page.get_by_test_id("toast-close").click()
        expect(studio.toast).to_have_count(0)
    assert studio.questions.count() == 0
    studio.box.evaluate("""box => {
        box.value = "x".repeat(1e6);
        box.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    studio.send.click()
    expect(studio.toast).to_contain_text("1,000,000 characters", timeout=SLOW)
    assert studio.box.evaluate("box => box.value.length") == 1_000_000
    assert studio.questions.count() == 0
    studio.set_length(4)
    studio.ask_and_wait(QUESTION)


def test_the_alternatives_to_a_token_are_listed_and_one_is_followed(studio: StudioPage, steps: Steps):
    steps.allow()
    studio.set_length(8)
    first = studio.ask_and_wait(QUESTION).partition("\n")[0]
    studio.tokens.nth(2).click()
    rows = studio.page.get_by_role("table", name="Alternatives to the token").get_by_role("row")
    expect(rows.first).to_be_visible()
    shares = [float(text.removesuffix(" %")) for text in rows.locator("td:nth-child(3)").all_text_contents()]
    assert shares == sorted(shares, reverse=True) or shares[:8] == sorted(shares[:8], reverse=True)
    expect(rows.and_(studio.page.locator("[aria-current]"))).to_have_count(1)
    branch = rows.get_by_role("button").first
    text = json.loads((branch.get_attribute("aria-label") or "").removeprefix("Branch with "))
    branch.click()
    expect(studio.page.locator("#chat .options")).to_contain_text("Answer 1 of 2")
    assert studio.wait().startswith(first[:2] + text)


def test_a_raw_completion_gets_the_text_as_it_stands(studio: StudioPage, steps: Steps):
    steps.allow()
    studio.set_length(4)
    shown, prompt = studio.page.locator("#prompt-text pre"), studio.page.locator("#prompt button").first
    studio.box.fill("Once <b>upon")
    prompt.click()
    expect(shown).to_contain_text("<|im_start|>user\nOnce <b>upon<|im_end|>")
    prompt.click()
    studio.page.locator("#raw input").check()
    prompt.click()
    expect(shown).to_have_text("Once <b>upon")
    studio.send.click()
    studio.wait()
    assert "".join(studio.page.locator(".rp-prompt .rp-text").all_text_contents()) == "Once·<b>upon"
    studio.open()
    studio._advanced()
    expect(studio.page.locator("#raw input")).to_be_checked()
