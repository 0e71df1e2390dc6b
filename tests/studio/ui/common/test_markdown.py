"""What people and models write is shown as they wrote it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.ui.common.markdown import as_markdown, as_text, closed


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


SLOW = ["` `` ", "`a", "<a", "\\", "```\n", "`", "~", "!", "![", "!\\", "``` ", "`\n", "~~~a\n", " ", "\n ", "<\\"]


@pytest.mark.parametrize("text", [piece * (100_000 // len(piece)) for piece in SLOW], ids=map(repr, SLOW))
@pytest.mark.timeout(60)  # what takes the square of the length takes far longer
def test_no_text_makes_it_slow(text):
    as_text(as_markdown(text))
