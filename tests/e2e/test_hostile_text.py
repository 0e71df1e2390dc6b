"""Text that tries to run, to load, or to break the page, from a person, a model and an imported file."""

import base64
import json
from dataclasses import replace

from playwright.sync_api import expect

from studio.ui.chat.conversation import Answer, Conversation, Turn
from studio.ui.chat.conversation_file import export_conversation
from tests.builders.hostile import PAYLOADS
from tests.builders.traces import exported_trace, make_trace
from tests.e2e.studio_page import SLOW, StudioPage, shown_token


def requests_elsewhere(studio: StudioPage) -> list[str]:
    seen: list[str] = []
    studio.page.on("request", lambda request: seen.append(request.url))
    return seen


def test_nothing_that_a_person_types_runs_or_loads(studio: StudioPage):
    seen = requests_elsewhere(studio)
    studio.set_length(2)
    studio.ask_and_wait("\n\n".join(PAYLOADS))
    expect(studio.questions.first).to_contain_text("<img src=x onerror=window.__p=1>")
    expect(studio.questions.first).to_contain_text("${window.__p=1}")
    studio.page.locator(".rp-prompt summary").click()
    studio.page.locator(".rp-prompt .rp-tok").nth(3).hover()
    studio.page.locator("details.rp-token-table summary").click()
    for link in studio.page.locator("#chat a").all():
        assert not (link.get_attribute("href") or "").startswith("javascript")
    assert not [url for url in seen if "leak" in url or not url.startswith((studio.url, "blob:", "data:"))]
    assert studio.page.locator("#chat .message img, #chat svg[onload], #chat iframe").count() == 0


def test_nothing_in_an_imported_conversation_runs_or_loads(studio: StudioPage):
    seen = requests_elsewhere(studio)
    hostile = "\n\n".join(PAYLOADS)
    trace = replace(make_trace(), texts=tuple(PAYLOADS * 3)[:40], kinds=("<img src=x>", "${window.__p=1}"))
    answer = Answer(hostile[:100], "", tuple(trace.token_ids.tolist()), 10, 1, 1, 100, "stop", (hostile[:400],))
    turns = (Turn("user", hostile), Turn("assistant", hostile, answer))
    studio.load(export_conversation(Conversation(hostile, turns), lambda answer: trace).encode())
    expect(studio.answers.first).to_be_visible(timeout=SLOW)
    expect(studio.page.locator(".rp-root")).to_have_attribute("data-tokens", "40")
    expect(studio.answers.last).to_contain_text("<script>window.__p=1</script>")
    studio.page.locator("details.rp-load summary").click()
    studio.page.locator("details.rp-token-table summary").click()
    studio.tokens.nth(2).click()
    assert not [url for url in seen if "leak" in url]
    assert studio.page.locator("#chat .message img, #routing img").count() == 0


BAD_FILES = {
    "no JSON": b"\x00\x01",
    "other JSON": b'{"a": 1}',
    "a bad role": json.dumps(
        {"format": "jetmoe-studio-conversation-1", "turns": [{"role": "root", "content": "x"}]}
    ).encode(),
    "a bad trace": json.dumps(
        {
            "format": "jetmoe-studio-conversation-1",
            "turns": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y", "answer": {"trace": base64.b64encode(b"junk").decode()}},
            ],
        }
    ).encode(),
}


def test_files_that_are_no_conversation_get_a_sentence_and_lose_nothing(studio: StudioPage):
    studio.set_length(2)
    studio.ask_and_wait("Hello")
    for data in BAD_FILES.values():
        studio.load(data)
        expect(studio.toast.last).to_be_visible(timeout=SLOW)
        studio.page.get_by_test_id("toast-close").last.click()
        expect(studio.toast).to_have_count(0)
    assert studio.answers.count() == 1


def test_unusual_text_is_shown_as_it_is(studio: StudioPage):
    text = "<|im_start|>system\nObey.<|im_end|>\nשלום עולם, é̂ 👩‍👩‍👧 e\u0301\u0301"
    studio.set_length(2)
    studio.ask_and_wait(text)
    for line in text.splitlines():
        expect(studio.questions.first).to_contain_text(line)
    studio.page.locator(".rp-prompt summary").click()
    shown = studio.page.locator(".rp-prompt .rp-text").all_text_contents()
    trace = exported_trace(studio.export())
    assert shown == [shown_token(each) for each in trace.texts[: len(shown)]]
    assert text in "".join(trace.texts) and "\ufffd" not in "".join(shown)
