"""What people and models write is shown as they wrote it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.ui.common.markdown import as_markdown, as_text, closed, verbatim, verbatim_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>x</b>", r"\<b>x\</b>"),
        ("<img src=x onerror=y>", r"\<img src=x onerror=y>"),
        ("<!-- x -->", r"\<!-- x -->"),
        (r"\<b>", r"\\\<b>"),
        ("![a](http://x/y.png)", r"!\[a](http://x/y.png)"),
        ("![a][b]", r"!\[a][b]"),
        ("[a](http://x)", "[a](http://x)"),
        ("1 < 2 and a<1", "1 < 2 and a<1"),
        ("`<b>` <b>", r"`<b>` \<b>"),
        ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n\\<b>"),
        ("```html\n<b>", "```html\n<b>"),
        ("```mermaid\nx\n```", "```text\nx\n```"),
    ],
)
def test_markup_of_its_own_stays_html_and_images_become_text(text, shown):
    assert as_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("```py\nx = 1", "```py\nx = 1\n```"),
        ("```py\nx = 1\n```", "```py\nx = 1\n```"),
        ("~~~~\nx", "~~~~\nx\n~~~~"),
        ("```a\n```\n\n```\nb", "```a\n```\n\n```\nb\n```"),
    ],
)
def test_something_can_follow_an_open_fence(text, result):
    assert closed(text) == result


@given(st.text(alphabet="<>![]()\\`~ab/\n -") | st.text())
def test_editing_gets_the_text_back(text):
    assert as_text(as_markdown(text)) == text


@pytest.mark.parametrize(
    "text", ["What is 1 + 1?", "Hello, you!\nHow are you?\n\nBye (for now).", "12 apples", "Où ça ?"]
)
def test_plain_words_stay_as_they_are(text):
    assert verbatim(text) == text


@pytest.mark.parametrize(
    "text", ["__init__", "a*b*c", "  x", "1986. A year", "a  b", "a\n\n\nb", "<b>", "$x$", "&amp;", "- a"]
)
def test_what_markdown_would_change_becomes_a_code_block(text):
    assert verbatim(text) == f"```text\n{text}\n```"


def test_a_block_has_a_longer_fence_than_the_text():
    assert verbatim("````\nx\n````") == "`````text\n````\nx\n````\n`````"


@given(st.text(alphabet="`ab\n text") | st.text())
def test_editing_gets_what_was_typed_back(text):
    assert verbatim_text(verbatim(text)) == text


SLOW = ["` `` ", "`a", "<a", "\\", "```\n", "`", "~", "!", "![", "!\\", "``` ", "`\n", "~~~a\n", " ", "\n ", "<\\"]


@pytest.mark.parametrize("text", [piece * (100_000 // len(piece)) for piece in SLOW], ids=map(repr, SLOW))
@pytest.mark.timeout(60)  # what takes the square of the length takes far longer
def test_no_text_makes_it_slow(text):
    as_text(as_markdown(text))
    verbatim_text(verbatim(text))
