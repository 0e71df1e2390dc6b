"""An export as HTML: download link, merge proof and model card.

gr.HTML(shown(run, "merged-bf16", folder))
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from studio.backend.export import kept
from studio.backend.runs.run import Run
from studio.backend.system.plan import size
from studio.ui.common.card import card, figures, note
from studio.ui.common.downloads import address

NAME = "Export"
TITLES = {"adapter": "Adapter", "merged-bf16": "Merged model, 16-bit", "merged-nf4": "Merged model, 4-bit"}


def shown(run: Run, kind: str, folder: Path) -> str:
    href = escape(address(run.id, kind), quote=True)
    mib = size(folder) / 2**20
    return card(
        NAME,
        f'<p><a class="dp-download" href="{href}" download>Download '
        f"{escape(TITLES[kind])} (zip, {mib:,.1f} MiB)</a></p>{_proof(kept.proof(folder))}"
        f'<details class="dp-table"><summary>Model card</summary><pre class="dp-text" tabindex="0">'
        f"{escape(kept.card(folder).strip())}</pre></details>",
    )


def _agreement(proof: dict[str, Any]) -> tuple[str, str]:
    if "same_label" in proof:
        return f"{proof['same_label']:.0%}", "of prefixes get the same label from both"
    return f"{proof['same_next_token']:.0%}", "of next tokens predicted the same by both"


def _proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return note("PEFT files, which load with stock PEFT and transformers.")
    pairs = [
        (f"{proof['error']:.3f}", f"error relative to the adapter's change, at most {proof['tolerance']:g}"),
        (f"{proof['from_base']:.3f}", "distance to the base model, same unit"),
        _agreement(proof),
        (f"{proof['change']:.1%}", "change by the adapter"),
    ]
    return (
        f"<h4>Merge proof passed <small>for the written files, on {proof['tokens']} tokens</small></h4>{figures(pairs)}"
    )
