"""How much text a person may send at once."""

from studio.backend.hosting import demo

MAX_TEXT = 100_000


def longest_text() -> int:
    """Return the most characters of one message or text; a demo may allow fewer."""
    limits = demo.limits()
    return limits.text if limits else MAX_TEXT
