"""The list of conversations in a real browser: what it keeps, several tabs, and browsers that keep nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from studio.ui.common.browser import STORAGE_SECRET
from tests.builders.served import ToyStudio
from tests.e2e.studio_page import SLOW, StudioPage, settle

OLD = Path(__file__).parents[1] / "data" / "home_0_1" / "browser.json"
FILL = """async ([conversations, messages]) => {
  const opening = indexedDB.open("jetmoe-studio-conversations");
  const database = await new Promise((done) => { opening.onsuccess = () => done(opening.result); });
  const transaction = database.transaction(["heads", "bodies"], "readwrite");
  for (let i = 0; i < conversations; i++) {
    const id = String(i).padStart(32, "0"), turns = Array.from({ length: messages }, (_, k) => ({
      role: k % 2 ? "assistant" : "user", content: `message ${k} of ${i}. `.repeat(20), answer: null,
    }));
    transaction.objectStore("heads").put({ id, title: "", first: `Question ${i}`, draft: "", messages, updated: i,
      revision: 1 }, id);
    transaction.objectStore("bodies").put(JSON.stringify({ id, title: "", system: "", turns }), id);
  }
  await new Promise((done) => { transaction.oncomplete = done; });
  database.close();
}"""
OPEN_LIST = """async () => {
  const start = performance.now();
  document.querySelector('#conversations button[aria-label="Conversations"]').click();
  while (document.querySelectorAll(".cv-open").length < 200) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
ENCRYPT = """async ([key, iv, text]) => {
  const bytes = (hex) => new Uint8Array(hex.match(/../g).map((byte) => parseInt(byte, 16)));
  const secret = await crypto.subtle.importKey("raw", bytes(key), "AES-CBC", false, ["encrypt"]);
  const algorithm = { name: "AES-CBC", iv: bytes(iv) };
  const done = new Uint8Array(await crypto.subtle.encrypt(algorithm, secret, new TextEncoder().encode(text)));
  return [...done].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}"""


class ConversationsPage(StudioPage):
    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.title = page.locator(".cv-title")
        self.note = page.locator(".cv-said")
        self.drawer = page.get_by_role("dialog", name="Conversations")
        self.items = page.locator(".cv-open")

    def open(self, query: str = "") -> ConversationsPage:
        super().open(query)
        expect(self.title).not_to_be_empty()
        return self

    def show_list(self) -> None:
        self.page.get_by_role("button", name="Conversations", exact=True).click()
        expect(self.drawer).to_be_visible()

    def show(self, name: str) -> None:
        self.show_list()
        self.item(name).click()
        expect(self.title).to_have_text(name)

    def item(self, name: str) -> Locator:
        return self.items.filter(has_text=name)

    def new_chat(self) -> None:
        self.page.locator("#new-chat").click()
        expect(self.title).to_have_text("New chat")
        expect(self.questions).to_have_count(0)

    def chat(self, *questions: str) -> None:
        self.set_length(4)
        for question in questions:
            self.ask_and_wait(question)


@pytest.fixture
def talks(page: Page, toy: ToyStudio) -> ConversationsPage:
    return ConversationsPage(page, toy.url).open()


def test_conversations_are_listed_searched_renamed_deleted_and_restored(talks: ConversationsPage):
    talks.chat("A <b>whale</b>")
    talks.new_chat()
    talks.chat("A lighthouse", "And its keeper?")
    talks.show_list()
    expect(talks.items).to_contain_text(["A lighthouse4 messages", "A <b>whale</b>2 messages"])
    search = talks.page.get_by_label("Search conversations")
    search.fill("KEEPER")
    expect(talks.items).to_have_count(1)
    search.fill("")
    talks.page.get_by_role("button", name="Rename A <b>whale</b>").click()
    talks.page.get_by_label("Name", exact=True).fill("Ocean")
    talks.page.get_by_role("button", name="Save").click()
    expect(talks.item("Ocean")).to_be_visible()
    talks.page.get_by_role("button", name="Delete Ocean").click()
    expect(talks.items).to_have_count(1)
    talks.drawer.get_by_role("button", name="Undo").click()
    talks.item("Ocean").click()
    expect(talks.questions.first).to_contain_text("A <b>whale</b>")
    talks.open()
    expect(talks.title).to_have_text("Ocean")
    expect(talks.questions).to_have_count(1)
    assert talks.export()["title"] == "Ocean"


def test_drafts_sampling_and_view_are_kept(talks: ConversationsPage):
    talks.chat("A whale")
    talks.page.locator("#set-temperature input[type=number]").fill("0.35")
    talks.page.locator("#set-temperature input[type=number]").press("Tab")
    talks.kind("MoE").click()
    talks.set_layer(0)
    talks.box.fill("half a question")
    talks.new_chat()
    expect(talks.box).to_have_value("")
    talks.open()
    talks.show("A whale")
    expect(talks.box).to_have_value("half a question")
    expect(talks.page.get_by_role("slider", name="Layer")).to_have_value("0")
    expect(talks.kind("MoE")).to_be_checked()
    talks._advanced()
    assert talks.page.locator("#set-temperature input[type=number]").input_value() == "0.35"
    assert talks.page.locator("#set-max_new_tokens input[type=number]").input_value() == "4"
    talks.page.locator("#sampling-reset").click()
    expect(talks.page.locator("#set-temperature input[type=number]")).to_have_value("0.7")


def test_all_are_exported_and_imported_elsewhere(talks: ConversationsPage, browser: Browser, toy: ToyStudio):
    talks.chat("A whale")
    talks.new_chat()
    talks.chat("A lighthouse")
    talks.show_list()
    with talks.page.expect_download() as download:
        talks.page.get_by_role("button", name="Export all").click()
    document = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    context = browser.new_context()
    other = ConversationsPage(context.new_page(), toy.url).open()
    other.load(document)
    expect(other.questions.first).to_contain_text("A lighthouse", timeout=SLOW)
    other.show("A whale")
    expect(other.questions.first).to_contain_text("A whale")
    context.close()


def test_an_answer_in_progress_stays_in_its_conversation(talks: ConversationsPage, toy: ToyStudio):
    talks.chat("A lighthouse")
    talks.new_chat()
    toy.steps.hold()
    talks.set_length(3000)
    talks.ask("A whale")
    talks.let_through(toy.steps, 5)
    talks.show("A lighthouse")
    expect(talks.questions.first).to_contain_text("A lighthouse")
    toy.steps.allow()
    talks.show("A whale")
    expect(talks.answers).to_have_count(1)
    expect(talks.send).to_be_visible()


def test_tabs_have_their_own_conversation_and_the_same_one_is_said(talks: ConversationsPage, toy: ToyStudio):
    talks.chat("A whale")
    other = ConversationsPage(talks.page.context.new_page(), toy.url).open()
    expect(other.title).to_have_text("New chat")
    other.chat("A lighthouse")
    expect(talks.title).to_have_text("A whale")
    other.show("A whale")
    for each in (talks, other):
        expect(each.note).to_contain_text("also open in another tab")
    other.chat("In one tab?")
    expect(talks.note).to_contain_text("Another tab has changed this conversation.")
    talks.chat("In another tab?")
    expect(talks.note).to_contain_text("yours goes on as a copy")
    talks.show_list()
    expect(talks.items).to_have_count(3)
    talks.page.keyboard.press("Escape")
    expect(talks.title).to_have_text("A whale (copy)")
    assert [turn["content"] for turn in talks.export()["turns"][::2]] == ["A whale", "In another tab?"]
    assert [turn["content"] for turn in other.export()["turns"][::2]] == ["A whale", "In one tab?"]
    other.page.close()
    expect(talks.note).not_to_contain_text("also open")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); }", "refuses storage"),
        ("IDBObjectStore.prototype.put = function () { try { this.transaction.abort(); } catch {} }", "is full"),
    ],
    ids=["refused", "full"],
)
def test_what_the_browser_does_not_store_is_said_and_stays_on_the_page(page: Page, toy: ToyStudio, broken, sentence):
    page.add_init_script(broken)
    talks = ConversationsPage(page, toy.url).open()
    talks.chat("A whale")
    talks.new_chat()
    talks.chat("A lighthouse")
    expect(talks.note).to_contain_text(sentence)
    talks.show("A whale")
    expect(talks.questions.first).to_contain_text("A whale")


def test_200_conversations_of_200_messages_open_at_once(talks: ConversationsPage):
    talks.page.evaluate(FILL, [200, 200])
    talks.open()
    settle(talks.page)
    took = talks.page.evaluate(OPEN_LIST)
    talks.page.get_by_label("Search conversations").fill("message 199 of 77.")
    expect(talks.items).to_have_count(1)
    talks.items.first.click()
    expect(talks.questions).to_have_count(100)
    assert took < 500, "milliseconds"


def encrypted(page: Page, value: Any) -> str:
    """As Gradio's browser storage, which encrypts like OpenSSL, with a hash of the secret."""
    salt, made, passphrase = b"12345678", b"", hashlib.sha256(STORAGE_SECRET.encode()).hexdigest().encode()
    while len(made) < 48:
        made += hashlib.md5(made[-16:] + passphrase + salt).digest()
    hexadecimal = page.evaluate(ENCRYPT, [made[:32].hex(), made[32:48].hex(), json.dumps(value)])
    unused = base64.b64encode(made[32:48]).decode()  # the derived one takes its place
    return f"{unused}:{base64.b64encode(b'Salted__' + salt + bytes.fromhex(hexadecimal)).decode()}"


def test_the_conversation_of_an_earlier_version_is_taken_over(page: Page, toy: ToyStudio):
    key = "jetmoe-studio-conversation"
    page.goto(f"{toy.url}glossary")
    page.evaluate("([key, value]) => localStorage.setItem(key, value)",
                  [key, encrypted(page, json.loads(OLD.read_text())[key])])  # fmt: skip
    talks = ConversationsPage(page, toy.url).open()
    expect(talks.title).to_have_text("Say 7")
    expect(talks.answers).to_contain_text("seven")
    talks.open()
    talks.show_list()
    expect(talks.items).to_have_count(1)
