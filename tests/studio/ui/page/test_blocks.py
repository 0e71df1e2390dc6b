"""What a skipped component costs, and that nothing else is different from Gradio's own page."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from studio.ui.page.blocks import Blocks

SKIP = gr.skip()


def page(kind: type[gr.Blocks]) -> gr.Blocks:
    with kind() as demo:
        parts = [gr.Chatbot(), gr.Textbox(), gr.State(), gr.HTML(), gr.Column()]
        gr.Button().click(lambda: None, None, parts)
    return demo


def shown(demo: gr.Blocks, values: object) -> tuple[list, SessionState]:
    state = SessionState(demo)
    values = copy.deepcopy(values)  # Gradio takes updates apart
    # In a thread of its own: where a browser is open, this one has a running loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, demo.postprocess_data(demo.fns[0], values, state)).result(), state


@pytest.mark.parametrize(
    "values",
    [
        ([{"role": "user", "content": "Hi"}], SKIP, "kept", "<b>bold</b>", SKIP),
        (SKIP, gr.update(value="new", label="Label"), SKIP, SKIP, gr.update(visible=False)),
        (SKIP, "one", SKIP, SKIP, SKIP),
        ([], None, None, None, SKIP),
        (SKIP, SKIP, SKIP, SKIP, SKIP),
    ],
)
def test_the_page_gets_what_gradio_would_send(values):
    gradios = [
        # Of HTML it wraps the skip once more.
        SKIP if each == {"props": SKIP, "__type__": "update"} else each
        for each in shown(page(gr.Blocks), values)[0]
    ]
    assert shown(page(Blocks), values)[0] == gradios


def test_one_skip_for_all_and_the_wrong_number_are_as_in_gradio():
    demo = page(Blocks)
    everything, _ = shown(demo, gr.skip())
    assert everything[:2] == [SKIP] * 2 and everything[2] is None
    with pytest.raises(ValueError, match="enough output values"):
        shown(demo, ("one", "two"))


def test_what_is_skipped_is_not_made_again():
    for kind, same in ((Blocks, True), (gr.Blocks, False)):
        demo = page(kind)
        _, state = shown(demo, (SKIP, "text", SKIP, SKIP, SKIP))
        chat = demo.fns[0].outputs[0]
        assert (state[chat._id] is chat) is same, "Gradio has learnt this: studio/ui/page/blocks.py can go"
