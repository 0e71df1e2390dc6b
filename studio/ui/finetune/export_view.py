"""An export as HTML: where to get it, its merge proof, and the model card as text.

gr.HTML(shown(run, "merged-bf16", folder))
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from studio.backend.export import kept
from studio.backend.runs.run import Run
from studio.backend.training.queue import size
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
        f'<details class="dp-table"><summary>The model card</summary><pre class="dp-text" tabindex="0">'
        f"{escape(kept.card(folder).strip())}</pre></details>",
    )


def _agreement(proof: dict[str, Any]) -> tuple[str, str]:
    if "same_label" in proof:
        return f"{proof['same_label']:.0%}", "of its beginnings to which both give the same label"
    return f"{proof['same_next_token']:.0%}", "of tokens after which both predict the same"


def _proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return note("PEFT's own files; they load in stock PEFT on stock transformers.")
    pairs = [
        (f"{proof['error']:.3f}", f"off base and adapter, of the adapter's change; {proof['tolerance']:g} is allowed"),
        (f"{proof['from_base']:.3f}", "from the base, in the same measure"),
        _agreement(proof),
        (f"{proof['change']:.1%}", "is what the adapter changes"),
    ]
    return (
        f"<h4>Merge proof passed <small>read back from the written files, on {proof['tokens']} tokens</small></h4>"
        f"{figures(pairs)}"
    )
