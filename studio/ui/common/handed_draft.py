"""Training data that another tab passes to Fine-tune, to review and start a run there.

handed = handed_draft()                                       # the same gr.State in both tabs
button.click(lambda: form.training_data(), None, handed)      # in one tab
handed.change(open_draft, handed, ...)                        # in the other
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import gradio as gr

from studio.ui.common import browser

_of_pages: WeakKeyDictionary[gr.Blocks, gr.State] = WeakKeyDictionary()


def handed_draft() -> gr.State:
    """Return the state of the page that is being built."""
    page = browser.page()
    if page not in _of_pages:
        _of_pages[page] = gr.State(None)
    return _of_pages[page]
