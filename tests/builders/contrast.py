"""How legible one colour is on another."""

from collections.abc import Iterable


def contrast(one: Iterable[int], two: Iterable[int]) -> float:
    """Of two colours, each red, green and blue of 0 to 255, as WCAG 2 defines it:
    https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
    """
    dark, light = sorted([_luminance(*one), _luminance(*two)])
    return (light + 0.05) / (dark + 0.05)


def _luminance(red: int, green: int, blue: int) -> float:
    linear = [
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
