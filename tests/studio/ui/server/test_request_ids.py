"""What a person and the log see of an unexpected error: the same number, and no traceback on the page."""

import logging
import re

import gradio as gr
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.errors import StudioError
from studio.ui.common.shown_errors import shows_errors
from studio.ui.server.request_ids import RequestIds

SENTENCE = r"Something went wrong \(error ([0-9a-f]{8})\)\. The server log has the details under this number\."


def broken(request):
    raise ValueError("secret detail")


def client() -> TestClient:
    routes = [Route("/broken", broken), Route("/fine", lambda request: PlainTextResponse("fine"))]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(RequestIds)]))


def test_a_broken_route_shows_the_number_that_the_log_says(caplog):
    answer = client().get("/broken")
    number = re.fullmatch(SENTENCE, answer.json()["detail"])[1]
    assert answer.status_code == 500 and answer.headers["X-Request-ID"] == number and "secret" not in answer.text
    assert f"request {number} failed: GET '/broken'" in caplog.text and "ValueError: secret detail" in caplog.text
    assert client().get("/fine").headers["X-Request-ID"] != client().get("/fine").headers["X-Request-ID"]


def test_a_path_can_not_write_a_line_into_the_log(caplog):
    async def fails(scope, receive, send):
        raise ValueError("secret detail")

    TestClient(RequestIds(fails)).get("/x%0aERROR%20forged" + "x" * 5000)
    (message,) = [each.getMessage() for each in caplog.records if each.name.startswith("studio")]
    assert "\n" not in message and len(message) < 300


@shows_errors
def fails(text):
    raise StudioError("Mend it.") if text == "mine" else ValueError("secret detail")


@pytest.mark.parametrize("queue", [True, False])
def test_a_broken_handler_too(queue, caplog):
    with gr.Blocks() as demo:
        box = gr.Textbox()
        gr.Button().click(fails, box, box, queue=queue, api_name="fails")
    demo.queue(api_open=False)
    with caplog.at_level(logging.ERROR):
        _, url, _ = demo.launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1",
            app_kwargs={"middleware": [Middleware(RequestIds)]},
        )  # fmt: skip
        try:
            number, said = asked(url, queue)
        finally:
            demo.close()
    assert re.search(SENTENCE, said)[1] == number and "secret" not in said and "Traceback" not in said
    assert f"request {number} failed in a handler" in caplog.text


def asked(url: str, queue: bool) -> tuple[str, str]:
    """The number of the request that asked, and all that came back."""
    with httpx.Client(base_url=url) as asking:
        body = {"data": ["x"], "fn_index": 0, "session_hash": "s"}
        if not queue:
            answer = asking.post("gradio_api/run/predict", json=body)
            return answer.headers["X-Request-ID"], answer.text
        joined = asking.post("gradio_api/queue/join", json=body)
        with asking.stream("GET", "gradio_api/queue/data?session_hash=s") as stream:
            said = ""
            for line in stream.iter_lines():
                said += line
                if "process_completed" in line:
                    return joined.headers["X-Request-ID"], said
    raise AssertionError(said)


def test_what_a_person_can_mend_has_no_number():
    with pytest.raises(gr.Error) as raised:
        fails("mine")
    assert raised.value.message == "Mend it."
