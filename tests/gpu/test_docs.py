"""The tables of docs/gpu.md, against the catalog and against their own arithmetic."""

import re
from pathlib import Path

import pytest

from studio.backend.models.catalog import SIZES

TEXT = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
CARDS = (8, 16, 24, 80)
NAMES = {"JetMoE-8B": "jetmoe", "OLMoE-1B-7B": "olmoe"}
PRECISIONS = {"4 bits": "nf4", "bf16": "bf16"}
MODELS = [(name, precision) for name in NAMES for precision in PRECISIONS]
TOKENS, GIB_PER_1000 = 2.048, 0.33


def cells(row: str) -> list[str]:
    found = re.search(rf"^\| {re.escape(row)} \|(.*)\|$", TEXT, re.MULTILINE)
    assert found, row
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize("name,precision", MODELS)
def test_chat_needs_what_the_catalog_says(name, precision):
    need = SIZES[NAMES[name]]["needs_gib"][PRECISIONS[precision]]
    written, *fits = cells(f"Chat, {name}, {precision}")
    assert float(written) == need
    assert fits == ["no" if need > card else "tight" if need > card - 2 else "yes" for card in CARDS]


@pytest.mark.parametrize("name,precision", MODELS)
def test_the_longest_batch_leaves_a_gib(name, precision):
    need = float(cells(f"Training, {name}, {precision}")[0])
    longest = [int(TOKENS + (card - 1 - need) / GIB_PER_1000) if need <= card - 1 else "-" for card in CARDS]
    assert cells(f"{name}, {precision}") == [str(each) for each in longest]
