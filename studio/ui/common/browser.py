"""What tabs have to do with the browser: what it keeps for them, what it saves, and who it is.

stored = kept("", "jetmoe-studio-conversation")         # outlives a refresh and the server
page().load(open_page, stored, ...)                     # inside of gr.Blocks
button.click(export, None, hidden).success(None, hidden, hidden, js=saving("json", "conversation"))
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from studio.ui.server.identity import owner_of

ROW_FILES = ("csv", "tsv", "json", "jsonl", "parquet", "txt")
STORAGE_SECRET = "kept in the browser, not secret"  # noqa: S105  fixed, so that what is kept outlives the server


def kept(default: Any, key: str) -> gr.BrowserState:
    return gr.BrowserState(default, storage_key=key, secret=STORAGE_SECRET)


def saving(kind: str, name: str) -> str:
    """A script that saves the text that it is given as a file, and gives back an empty one.

    Args:
        kind: of the text, after "application/"; the ending of the file too.
        name: a JavaScript expression.
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
    """For a file of rows."""
    label, endings = f"Upload a file ({', '.join(ROW_FILES)})", [f".{ending}" for ending in ROW_FILES]
    return gr.UploadButton(label, file_types=endings, elem_id=elem_id, size="sm")


def page() -> gr.Blocks:
    """The page that is being built."""
    blocks = gr.context.Context.root_block
    assert blocks is not None, "a tab is built inside of gr.Blocks"
    return blocks


def component(elem_id: str) -> Any:
    """One that is built already, of whatever part of the page."""
    return next(block for block in page().blocks.values() if block.elem_id == elem_id)


def forgetting(name: str) -> str:
    """JavaScript that takes a parameter out of the page's address, and hands on its argument."""
    return f"""(value) => {{
  const url = new URL(location);
  url.searchParams.delete({json.dumps(name)});
  history.replaceState(history.state, "", url);
  return value;
}}"""


def session(request: gr.Request) -> str:
    """Of one page that is open; nobody can name that of somebody else."""
    return f"{owner_of(request)} {request.session_hash or ''}"
