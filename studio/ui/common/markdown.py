r"""User and model text as markdown, with HTML shown as text and without loading images.

    shown = as_markdown(text)
    assert as_text(shown) == text

Gradio sanitises HTML in markdown, but still renders `<b>` and loads remote images, which tells another server that the
page was opened. So the `<` of a tag and the `[` of an image get a backslash, which markdown removes. Code stays as it
is, because the backslash would show there.

    shown = verbatim(typed)
    assert verbatim_text(shown) == typed

What a person typed has no markup at all: it becomes a code block, unless markdown shows it as it is anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Possessive and bounded quantifiers, so that no text takes quadratic time.
_CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<run>`++)(?!`)(?:(?!\n\s*\n).){1,2000}?(?<!`)(?P=run)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_TAG = re.compile(r"(?P<before>)(?<!\\)(?P<slashes>\\*+)(?P<sign><)(?=[A-Za-z/!?])")
_IMAGE = re.compile(r"(?P<before>!)(?P<slashes>\\*+)(?P<sign>\[)")
_CLOSING = re.compile(r"\n {0,3}(?:`{3,}|~{3,})[ \t]*\Z")
_MERMAID = re.compile(r"^( {0,3}(?:`{3,}|~{3,})[ \t]*)mermaid", re.IGNORECASE)

_LINE = r"(?:[^\W\d_]|\d++(?![.)]))(?:[^\s\\`*_{}\[\]<>#|~$&%^]| (?=\S))*+"
_PLAIN = re.compile(rf"{_LINE}(?:\n{{1,2}}{_LINE})*+")
"""Words and punctuation that no markdown changes."""
_VERBATIM = re.compile(r"(?P<fence>`{3,}+)text\n(?P<text>.*)\n(?P=fence)", re.DOTALL)


def as_markdown(text: str) -> str:
    """Return markdown that keeps the text's own markup, and shows HTML and images as typed."""
    escape = lambda plain: _IMAGE.sub(_escape, _TAG.sub(_escape, plain))  # noqa: E731
    return _replace(text, outside=escape, inside=lambda code: _MERMAID.sub(r"\1text", code))


def as_text(markdown: str) -> str:
    """Return the text that was passed to `as_markdown`, except that mermaid fences stay text fences."""
    unescape = lambda plain: _IMAGE.sub(_unescape, _TAG.sub(_unescape, plain))  # noqa: E731
    return _replace(markdown, outside=unescape, inside=str)


def verbatim(text: str) -> str:
    """Return markdown that shows a text character by character, with its blanks and line breaks."""
    if _PLAIN.fullmatch(text):
        return text
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def verbatim_text(markdown: str) -> str:
    """Return the text that was passed to `verbatim`."""
    found = _VERBATIM.fullmatch(markdown)
    return found["text"] if found else markdown


def closed(markdown: str) -> str:
    """Close an open code fence, so that more text can follow."""
    fences = [match for match in _CODE.finditer(markdown) if match["fence"]]
    is_open = fences and fences[-1].end() == len(markdown) and not _CLOSING.search(fences[-1][0])
    return f"{markdown}\n{fences[-1]['fence']}" if is_open else markdown


def _replace(text: str, outside: Callable[[str], str], inside: Callable[[str], str]) -> str:
    pieces, end = [], 0
    for match in _CODE.finditer(text):
        pieces += [outside(text[end : match.start()]), inside(match[0])]
        end = match.end()
    return "".join([*pieces, outside(text[end:])])


def _escape(match: re.Match[str]) -> str:
    return match["before"] + match["slashes"] * 2 + "\\" + match["sign"]


def _unescape(match: re.Match[str]) -> str:
    return match["before"] + "\\" * (len(match["slashes"]) // 2) + match["sign"]
