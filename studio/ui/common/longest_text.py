"""The length limit for user text."""

from studio.backend.hosting import demo

MAX_TEXT = 100_000
"""Characters of one message or text; the context of every model here is far smaller."""


def longest_text() -> int:
    """Return the maximum length of one message or text in characters; a demo may allow less."""
    limits = demo.limits()
    return limits.text if limits else MAX_TEXT
