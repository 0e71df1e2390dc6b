"""Numbers as the page writes them."""

from decimal import ROUND_HALF_UP, Decimal


def to_fixed(value: float, digits: int) -> str:
    """The text of JavaScript's `toFixed`, which rounds halves up where Python rounds them to even."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
