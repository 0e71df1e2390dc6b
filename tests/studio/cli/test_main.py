"""The command line: documents, streams and exit codes. Two commands run in a process of their own, for the code and the
streams that others see; the rest in this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from studio.backend.bench import report as bench
from studio.backend.runs.run import Run
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.adapters import finished_run
from tests.builders.toy_folder import SIZES, spelling_toy, toy_folder, toy_tokenizer

ROOT = Path(__file__).parents[3]
GREEDY = ("--temperature", "0", "--precision", "fp32", "--json")


def studio(*arguments: str, typed: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=typed)
    if result.exception is not None:
        raise result.exception
    return result


def refused(*arguments: str) -> str:
    """What is said about a command that a person can fix."""
    with pytest.raises(StudioError) as caught:
        studio(*arguments)
    return str(caught.value)


def process(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "studio", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    return str(spelling_toy(tmp_path_factory.mktemp("models") / "toy"))


def test_chat_json_of_the_starter(starter_path):
    options = ("--temperature", "0", "--max-new-tokens", "8", "--json")
    result = process("chat", "--prompt", "What is the capital of France?", *options)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert "Paris" in document["text"] and len(document["token_ids"]) <= 8
    layers, kinds, tokens, chosen = document["routing"]["shape"]
    assert (layers, kinds, chosen) == (30, 2, 3)
    assert tokens == document["prompt_tokens"] + len(document["token_ids"])
    assert all(sum(load) == pytest.approx(1, abs=1e-3) for layer in document["routing"]["load"] for load in layer)
    assert document["ttft_s"] > 0 and document["decode_tok_s"] > 0 and document["steps"] == "native"


@pytest.mark.processes
def test_what_the_person_can_fix_exits_with_2():
    result = process("chat", "--model", "nothing", "--prompt", "hi")
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("There is no model 'nothing'") and "Traceback" not in result.stderr


def test_chat_streams_text_to_stdout_and_figures_to_stderr(toy):
    result = studio("chat", "--model", toy, "--prompt", "Say hello.", "--max-new-tokens", "4", "--seed", "1")
    assert result.stdout.strip() and "tokens" in result.stderr and "tokens," not in result.stdout


def test_models_json(starter_path):
    rows = json.loads(studio("models", "--json").stdout)
    starter = rows[0]
    assert starter["id"] == "starter" and starter["ready"] and starter["path"] == str(starter_path)
    assert all({"id", "family", "source", "ready", "path", "needs_gib", "licence", "fits"} <= set(row) for row in rows)
    assert {"jetmoe/jetmoe-8b", "allenai/OLMoE-1B-7B-0924-Instruct"} <= {row["id"] for row in rows}
    assert "jetmoe/jetmoe-8b " in studio("models").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chat", "--prompt", " "), "empty"),
        (("chat", "--json"), "--prompt"),
        (("chat", "--prompt", "hi", "--temperature", "-1", "--top-p", "7"), "temperature"),
        (("chat", "--precision", "int3", "--prompt", "Hi"), "nf4, bf16, fp32"),
        (("upcycle", "/no/such/folder", "/tmp/out"), "There is no /no/such/folder"),
        (("upcycle", __file__, "/tmp/out"), "test_main.py is neither a .gguf file nor a folder with a config.json"),
        (("bench", "generate", "--weights", "int8"), "bf16, nf4, fp32"),
        (("bench", "load", "--shape", "llama"), "jetmoe-8b"),
    ],
)
def test_what_the_person_can_fix_is_said(toy, arguments, words):
    model = ("--model", toy) if arguments[0] == "chat" else ()
    assert words in refused(*arguments, *model)


def test_upcycle_makes_a_model_that_chats(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "dense")
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(tmp_path / "dense")
    studio("upcycle", str(tmp_path / "dense"), str(tmp_path / "sparse"), "--replicas", "2")
    assert "not empty" in refused("upcycle", str(tmp_path / "dense"), str(tmp_path / "sparse"))
    options = ("--prompt", "hi", "--max-new-tokens", "3", "--temperature", "0", "--json")
    answer = json.loads(studio("chat", "--model", str(tmp_path / "sparse"), *options).stdout)
    assert answer["routing"]["shape"][:2] == [2, 2]
    ends = {"eos_token_id": [299, answer["token_ids"][0]]}
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps(ends))
    studio("upcycle", str(tmp_path / "dense"), str(tmp_path / "stops"))
    assert json.loads(studio("chat", "--model", str(tmp_path / "stops"), *options).stdout)["token_ids"] == []


@pytest.mark.processes
def test_bench_load_prints_the_documented_form(tmp_path, monkeypatch):
    """With a row of the peer alone; `test_bench_worker.py` has rows of both."""
    assert bench.PEERS == ["jetmoe-studio", "transformers"]
    monkeypatch.setattr(bench, "PEERS", bench.PEERS[1:])
    toy = toy_folder(tmp_path / "toy")
    options = ("--weights", "bf16", "--repeats", "1", "--json")
    report = json.loads(studio("bench", "load", "--model", str(toy), *options).stdout)
    assert set(report) == {"machine", "work", "rows"}
    assert [(row["system"], row["weights"]) for row in report["rows"]] == [("transformers", "bf16")]
    assert all(row["load_s"] > 0 and row["peak_gib"] > 0.1 for row in report["rows"])


def test_quantize_writes_a_model_that_loads_in_4_bits(toy, tmp_path):
    studio("quantize", toy, str(tmp_path / "nf4"))
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] and config["hidden_size"] == SIZES["hidden_size"]
    toy_tokenizer().save_pretrained(tmp_path / "nf4")
    options = ("--prompt", "Hi", "--max-new-tokens", "4", "--json")
    assert len(json.loads(studio("chat", "--model", str(tmp_path / "nf4"), *options).stdout)["token_ids"]) == 4
    assert "already 4-bit" in refused("quantize", str(tmp_path / "nf4"), str(tmp_path / "again"))
    assert "no folder" in refused("quantize", str(tmp_path / "none"), str(tmp_path / "again"))


@pytest.fixture
def run(toy, tmp_path, monkeypatch) -> Run:
    """A finished one, in a home of its own."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return finished_run(Path(toy))


def test_chat_with_the_adapter_of_a_run(run):
    """The run tells the model."""
    options = ("--prompt", "Say 7", "--max-new-tokens", "6", *GREEDY)
    tuned = json.loads(studio("chat", "--adapter", run.id[:8], *options).stdout)
    assert set(tuned) == {"text", "adapter", "token_ids", "prompt_tokens", "ttft_s", "decode_tok_s", "steps", "routing"}
    base = json.loads(studio("chat", "--model", run.model, *options).stdout)
    assert tuned["adapter"] == run.id[:8] and base["adapter"] is None
    assert tuned["token_ids"] != base["token_ids"]
    assert "neither the folder of a PEFT adapter" in refused("chat", "--adapter", "../nothing", *options)


def test_a_conversation_with_an_adapter(run):
    result = studio("chat", "--adapter", run.id, "--max-new-tokens", "3", typed="Hi\nAgain\n\n")
    assert result.stderr.count("tok/s, time to first token") == 2
    assert "the running compilation" not in result.stderr


def test_export_writes_adapter_and_merged_model(run, tmp_path):
    adapter = json.loads(studio("export", run.id[:8], "--to", str(tmp_path / "a"), "--json").stdout)
    assert adapter == {"folder": str(tmp_path / "a"), "base_model": "toy", "proof": None, "merged": False}
    merged = studio("export", run.id[:8], "--to", str(tmp_path / "b"), "--merge", "--json")
    document = json.loads(merged.stdout)
    assert document["merged"] and document["proof"]["error"] <= document["proof"]["tolerance"]
    assert document["proof"] == json.loads((tmp_path / "b/merge_proof.json").read_text())
    assert "is not empty" in refused("export", run.id, "--to", str(tmp_path / "a"))


@pytest.mark.parametrize("command", ["models", "doctor", "runs list", "export --help", "classify predict --help"])
def test_quick_commands_do_not_import_torch(command):
    """Importing torch takes seconds; without it a command takes about half a second."""
    code = "import sys; sys.argv[1:] = sys.argv[1].split(); from studio.cli.main import app"
    code += "\ntry: app()\nfinally: sys.exit(3 if {'torch', 'transformers', 'gradio'} & {*sys.modules} else 0)"
    done = subprocess.run([sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
