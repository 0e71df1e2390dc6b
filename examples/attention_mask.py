"""Print which tokens can attend to which: python -m examples.attention_mask [MODEL] [TEXT]"""

import sys

from transformers.utils.attention_visualizer import AttentionMaskVisualizer

import jetmoe  # noqa: F401  makes Auto classes use this package


def main(model: str = "jetmoe/jetmoe-8b", text: str = "The stock market rallied today") -> None:
    AttentionMaskVisualizer(model)(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
