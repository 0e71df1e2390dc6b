"""The scripts of `examples/`, with a toy of each family."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import httpx
import pytest
from click.testing import CliRunner
from transformers.cli.serve import Serve

from jetmoe import OlmoeForCausalLM
from tests.builders.ports import free_port
from tests.builders.toy_folder import toy_folder


@pytest.fixture(scope="module", params=["jetmoe", "olmoe"])
def model(request, tmp_path_factory) -> str:
    return str(toy_folder(tmp_path_factory.mktemp(request.param) / "toy", family=request.param))


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        ("pipeline", ["Hello"], "Hello"),
        ("generate", [], "The stock market rallied today"),
        ("generate", ["nf4"], "GiB of weights"),
        ("routing", ["abc"], "MoE of layer 1\n             'a'  "),
        ("attention_mask", ["abc"], "'c':  2 ■ ■ "),
    ],
)
def test_a_script_prints_what_it_says(model, capsys, script, arguments, printed):
    import_module(f"examples.{script}").main(model, *arguments)
    assert printed in capsys.readouterr().out


def test_a_merged_model_is_served_and_chatted_with(tmp_path):
    """By transformers' own server and chat, on our classes."""
    folder = str(toy_folder(tmp_path / "toy", family="olmoe"))
    app = import_module("examples.transformers_cli").app
    server = Serve(folder, device="cpu", port=free_port(), non_blocking=True)
    try:
        url = f"http://localhost:{server.server.config.port}"
        asked = {"model": folder, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["message"]["role"] == "assistant"
        loaded = next(iter(server._model_manager.loaded_models.values())).model
        assert type(loaded) is OlmoeForCausalLM
        arguments = ["chat", folder, url, "max_new_tokens=5"]
        with ThreadPoolExecutor() as threads:  # Playwright leaves an event loop running in the main thread
            chat = threads.submit(CliRunner().invoke, app, arguments, input="Hi\nn\n!exit\n").result()
        assert chat.exit_code == 0 and "5 tokens in" in chat.output, chat.output
    finally:
        server.kill_server()
