"""Stop texts are held back while they may still begin, whatever the pieces."""

import pytest

from studio.backend.chat.text_stream import StopTexts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("xyz",), "one two three"),
        ("aaab", ("aab",), "a"),
        ("ab\n\nUser: hi", ("\nUser:", "\n\n"), "ab"),
        ("ends in tw", ("two",), "ends in tw"),
    ],
)
def test_stop_texts(text, stop, shown, size):
    stream = StopTexts(stop)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(map(stream.push, pieces)) + stream.rest() == shown
    assert stream.reached == (shown != text)


def test_nothing_of_a_stop_text_is_ever_shown():
    stream = StopTexts(("stop",))
    assert [stream.push(piece) for piece in ("a s", "t", "o", "x")] == ["a ", "", "", "stox"]
