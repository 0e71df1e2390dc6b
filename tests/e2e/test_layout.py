"""The page on a phone, in the dark, by keyboard and with little motion."""

import pytest
from playwright.sync_api import Page, expect

from tests.builders.served import Steps, ToyStudio
from tests.e2e.finetune_page import FinetunePage
from tests.e2e.studio_page import StudioPage


@pytest.mark.parametrize(("size", "theme"), [((390, 844), "light"), ((1280, 800), "dark")])
def test_nothing_scrolls_sideways(page: Page, toy: ToyStudio, size, theme):
    studio = StudioPage(page, toy.url).open(f"?__theme={theme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    studio.set_length(12)
    studio.ask_and_wait("A line of `code`, a-very-long-word" + "x" * 200)
    studio.load_table()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")


def ask_by_keyboard(studio: StudioPage, text: str, tokens: int) -> Page:
    studio.set_length(tokens)
    studio.box.focus()
    studio.page.keyboard.type(text)
    studio.page.keyboard.press("Enter")
    return studio.page


def test_a_conversation_by_keyboard_alone(studio: StudioPage):
    page = ask_by_keyboard(studio, "Name a colour.", tokens=12)
    studio.wait()
    _tab_to(page, "select")
    page.keyboard.press("Tab")
    expect(page.get_by_role("slider", name="Layer")).to_be_focused()
    before = page.locator(".rp-layer-out").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".rp-layer-out").inner_text() != before
    _tab_to(page, ".rp-answer-tokens .rp-tok")
    expect(page.locator(".rp-which")).to_contain_text("token 1 of the answer")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator(".rp-which")).to_contain_text("token 2 of the answer · pinned")


def test_an_answer_is_stopped_by_keyboard_alone(studio: StudioPage, steps: Steps):
    page = ask_by_keyboard(studio, "Count from one to one thousand.", tokens=3000)
    studio.let_through(steps, 4)
    page.keyboard.press("Tab")
    expect(studio.stop).to_be_focused()
    page.keyboard.press("Enter")
    studio.wait_until_stopped(steps)
    expect(page.locator("#stats")).to_contain_text("stopped")
    expect(studio.box).to_be_focused()


def _tab_to(page: Page, selector: str) -> None:
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches('#routing ' + selector)", selector):
            return
    raise AssertionError(f"the keyboard does not reach {selector}")


def test_who_passes_a_list_by_keyboard_changes_nothing(studio: StudioPage, toy: ToyStudio):
    """Gradio sends the value of a list that loses the focus as if it had been chosen."""
    page, model = studio.page, toy.engine._decoder
    studio.set_length(4)
    pass_lists(page, "#model, #precision")
    show(page, "Classify")
    page.locator("#classify-labels textarea").fill("mine, yours")
    pass_lists(page, "#classify-preset, #classify-template")
    expect(page.locator("#classify-labels textarea")).to_have_value("mine, yours")
    show(page, "Fine-tune")
    tuning = FinetunePage(page, toy.url)
    expect(tuning.preview.locator("h3")).to_be_visible()
    tuning.set("r", 5)
    expect(page.locator("#command textarea")).not_to_have_value("")
    pass_lists(page, "#format, #bundled")
    show(page, "Chat")
    studio.ask_and_wait("Hi")  # after all events before it
    show(page, "Fine-tune")
    expect(page.locator("#recipe-r input").first).to_have_value("5")
    assert toy.engine._decoder is model and toy.engine.status().change is None


def pass_lists(page: Page, selector: str) -> None:
    for element in page.locator(selector).locator("input").all():
        element.focus()
        page.keyboard.press("Tab")


def test_the_controls_have_names(studio: StudioPage):
    studio.set_length(4)
    studio.ask_and_wait("Hi")
    nameless = studio.page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea")]
        .filter(node => node.offsetParent && !node.ariaLabel && !node.title && !node.textContent.trim()
            && !(node.labels && [...node.labels].some(label => label.textContent.trim())))
        .map(node => node.outerHTML.slice(0, 200))""")
    assert not nameless


TABS = ("Chat", "Classify", "Fine-tune")


def show(page: Page, tab: str) -> None:
    page.locator("#tabs").get_by_role("tab", name=tab, exact=True).click()
    expect(page.locator({"Chat": "#box", "Classify": "#classify-box", "Fine-tune": "#source"}[tab])).to_be_visible()


def test_little_motion_is_respected(page: Page, toy: ToyStudio):
    page.emulate_media(reduced_motion="reduce")
    StudioPage(page, toy.url).open()
    for tab in TABS:
        show(page, tab)
        moving = page.evaluate("""() => [...document.querySelectorAll("*")].flatMap((node) =>
            [null, "::before", "::after"].filter((part) => {
              const style = getComputedStyle(node, part);
              const isSlow = style.transitionDuration.split(", ").some((time) => parseFloat(time));
              return isSlow || style.animationName !== "none" || style.scrollBehavior === "smooth";
            }).map((part) => `${node.tagName}.${node.className}${part ?? ""}`))""")
        assert not moving, tab


@pytest.mark.parametrize("size", [(390, 844)])
def test_the_arrow_of_a_list_covers_no_text(page: Page, toy: ToyStudio, size):
    StudioPage(page, toy.url).open()
    for tab in TABS:
        show(page, tab)
        room = page.evaluate("""() => [...document.querySelectorAll(".secondary-wrap > input")]
            .filter((input) => input.offsetParent && input.nextElementSibling?.matches(".icon-wrap"))
            .map((input) => input.nextElementSibling.getBoundingClientRect().left
                - (input.getBoundingClientRect().right - parseFloat(getComputedStyle(input).paddingRight)))""")
        assert room and min(room) >= 0, (tab, room)
