"""The public API over HTTP: what `gradio_client` and an MCP client get, and that the page's limits hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from studio.backend.chat.engine import Engine, Sampling
from studio.backend.hosting.exposure import Exposure
from tests.builders.served import serving
from tests.builders.toy_folder import spelling_toy

TEXT = "Say 7 again."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    made = Engine()
    made.load(
        str(spelling_toy(tmp_path_factory.mktemp("model") / "toy", max_position_embeddings=1024)), precision="fp32"
    )
    return made


@pytest.fixture(scope="module")
def demo(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A public demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("STUDIO_DEMO", "1")
        with serving(engine, Exposure(public=True, proxy=True)) as url:
            yield url


@pytest.fixture(scope="module")
def client(demo: str) -> Client:
    return Client(demo, verbose=False)


def refused(client: Client, *values: Any, **named: Any) -> str:
    with pytest.raises(AppError) as error:
        client.predict(*values, **named)
    return str(error.value)


def test_the_three_endpoints_give_what_the_engine_gives(client, engine):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    answer = client.predict(TEXT, earlier, "Be short.", 8, 0.7, 5, api_name="/chat")
    messages = [{"role": "system", "content": "Be short."}, *earlier, {"role": "user", "content": TEXT}]
    events = list(engine.generate(messages, Sampling(max_new_tokens=8, temperature=0.7, seed=5)))
    assert answer["text"] == "".join(event.text for event in events if event.kind in ("token", "done")) != ""
    assert (answer["finish"], answer["new_tokens"]) == ("length", 8)
    parts = list(client.submit(TEXT, max_new_tokens=200, api_name="/chat"))
    assert len(parts) > 1 and parts[-1]["text"].startswith(parts[0]["text"])

    sorted_ = client.predict(TEXT, ["odd", "even"], api_name="/classify")
    assert sorted_["label"] == max(sorted_["scores"], key=sorted_["scores"].get) and sorted_["text"] == TEXT
    assert sum(sorted_["scores"].values()) == pytest.approx(1)

    routed = client.predict(TEXT, api_name="/routing")
    assert "".join(routed["tokens"]) == TEXT and routed["kinds"] == ["MoA", "MoE"]
    assert all(sum(load) == pytest.approx(1, abs=1e-3) for layer in routed["load"] for load in layer)
    assert len(routed["strongest"][0][1]) == len(routed["tokens"])


def test_the_limits_of_the_page_hold(client):
    assert "at most 4,000" in refused(client, "x" * 4001, api_name="/chat")
    assert "at most 256 tokens" in refused(client, TEXT, max_new_tokens=257, api_name="/chat")
    assert "Keep it under 4,000" in refused(client, "x" * 4001, ["a", "b"], api_name="/classify")
    assert "'a' is the only label" in refused(client, TEXT, ["a"], api_name="/classify"), "not escaped for HTML"
    assert "at most 4,000" in refused(client, "x" * 4001, api_name="/routing")
    assert refused(client, "", ["a", "b"], api_name="/classify").startswith("There is no text to classify")
    assert "is empty" in refused(client, " ", api_name="/routing")


@pytest.mark.parametrize(
    "history",
    [[{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hi"}] * 2, ["x", "y"], "x", 7,
     [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": 7}]],
)  # fmt: skip
def test_a_history_of_another_form_is_refused_with_a_sentence(client, history):
    assert "history" in refused(client, TEXT, history, api_name="/chat")


def test_an_mcp_client_calls_the_same_three(demo):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask() -> tuple[list[str], dict[str, Any]]:
        async with (
            streamablehttp_client(f"{demo}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as one,
        ):
            await one.initialize()
            names = [tool.name for tool in (await one.list_tools()).tools]
            called = {
                "chat": await one.call_tool("chat", {"message": TEXT, "max_new_tokens": 4, "seed": 1}),
                "classify": await one.call_tool("classify", {"text": TEXT, "labels": ["odd", "even"]}),
                "routing": await one.call_tool("routing", {"text": TEXT}),
            }
            return names, {name: result.content[0].text for name, result in called.items()}

    with ThreadPoolExecutor(1) as pool:  # a browser of earlier tests leaves its event loop in this thread
        names, said = pool.submit(asyncio.run, ask()).result()
    assert names == ["chat", "classify", "routing"]
    assert "new_tokens" in said["chat"] and "confidence" in said["classify"] and "strongest" in said["routing"]
