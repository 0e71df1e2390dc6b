"""Browser helpers for the tabs: storage, downloads, uploads, URL parameters and sessions.

stored = kept("", "jetmoe-studio-conversation")         # survives a refresh and a server restart
page().load(open_page, stored, ...)                     # inside gr.Blocks
button.click(export, None, hidden).success(None, hidden, hidden, js=saving("json", "conversation"))
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr

from studio.backend.data.encodings import NAMES
from studio.ui.server.identity import owner_of

ROW_FILES = ("csv", "tsv", "json", "jsonl", "parquet", "txt")
STORAGE_SECRET = "kept in the browser, not secret"  # noqa: S105  fixed, so that stored values survive a server restart


def kept(default: Any, key: str) -> gr.BrowserState:
    return gr.BrowserState(default, storage_key=key, secret=STORAGE_SECRET)


def elsewhere(text: str, key: str, elem_id: str) -> gr.HTML:
    """Return a note that appears when another tab of the browser stores a value under the same key."""
    watch = f"""
window.addEventListener("storage", (event) => {{
  if (event.key === {json.dumps(key)}) element.querySelector("p").hidden = false;
}});"""
    note = f'<p class="dp-note" role="status" hidden>{escape(text)}</p>'
    return gr.HTML(html_template=note, js_on_load=watch, elem_id=elem_id)


def saving(kind: str, name: str) -> str:
    """Return JavaScript that downloads its argument as a file and returns "".

    Args:
        kind: media type of the text after "application/".
        name: JavaScript expression for the file name.
    """
    return f"""(text) => {{
  if (!text) return "";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {{ type: {json.dumps("application/" + kind)} }}));
  link.download = {name};
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return "";
}}"""


def upload_button(elem_id: str) -> gr.UploadButton:
    """Return an upload button for a file of rows."""
    label, endings = f"Upload file ({', '.join(ROW_FILES)})", [f".{ending}" for ending in ROW_FILES]
    return gr.UploadButton(label, file_types=endings, elem_id=elem_id, size="sm")


def encoding_list(elem_id: str, visible: bool = True) -> gr.Dropdown:
    """Return a list of the encodings of text files."""
    choices = [("auto", "auto"), *((title, name) for name, title in NAMES.items())]
    help_text = "Of a text file. “auto” detects it."
    return gr.Dropdown(
        choices, value="auto", label="Encoding", info=help_text, elem_id=elem_id, min_width=180, visible=visible
    )


def page() -> gr.Blocks:
    """Return the page that is being built."""
    blocks = gr.context.Context.root_block
    assert blocks is not None, "tabs must be built inside gr.Blocks"
    return blocks


def component(elem_id: str) -> Any:
    """Return a component that was already built, from any part of the page."""
    return next(block for block in page().blocks.values() if block.elem_id == elem_id)


def forgetting(name: str) -> str:
    """Return JavaScript that removes a query parameter from the URL and returns its argument."""
    return f"""(value) => {{
  const url = new URL(location);
  url.searchParams.delete({json.dumps(name)});
  history.replaceState(history.state, "", url);
  return value;
}}"""


def session(request: gr.Request) -> str:
    """Return the id of an open page. It includes the owner, so that no one can use another owner's session."""
    return f"{owner_of(request)} {request.session_hash or ''}"
