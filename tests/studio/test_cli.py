"""The command line, in processes of its own: documents, streams and exit codes."""

import json
import os
import subprocess
import sys

import pytest


def studio(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "studio", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def refused(*arguments: str, **environment: str) -> str:
    """What is said on stderr by a command that a person can mend."""
    result = studio(*arguments, **environment)
    assert result.returncode == 2, result.stderr
    return result.stderr


def test_chat_json(starter_path):
    options = ("--temperature", "0", "--max-new-tokens", "8", "--json")
    result = studio("chat", "--prompt", "What is the capital of France?", *options)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert "Paris" in document["text"] and len(document["token_ids"]) <= 8
    layers, kinds, tokens, chosen = document["routing"]["shape"]
    assert (layers, kinds, chosen) == (30, 2, 3)
    assert tokens == document["prompt_tokens"] + len(document["token_ids"])
    assert all(sum(load) == pytest.approx(1, abs=1e-3) for layer in document["routing"]["load"] for load in layer)
    assert document["ttft_s"] > 0 and document["decode_tok_s"] > 0


def test_chat_streams_text_to_stdout_and_figures_to_stderr(starter_path):
    result = studio("chat", "--prompt", "Say hello.", "--max-new-tokens", "4", "--seed", "1")
    assert result.returncode == 0 and result.stdout.strip()
    assert "tokens" in result.stderr and "tokens," not in result.stdout


def test_models_json(starter_path):
    rows = json.loads(studio("models", "--json").stdout)
    starter = rows[0]
    assert starter["id"] == "starter" and starter["ready"] and starter["path"] == str(starter_path)
    assert all(set(row) == {"id", "family", "source", "ready", "path", "needs_gib"} for row in rows)
    assert {"jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b-chat"} <= {row["id"] for row in rows}


def test_doctor_json(starter_path):
    result = studio("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == (0 if report["ok"] else 2)
    assert all(set(check) == {"name", "ok", "detail", "remedy"} for check in report["checks"])


def test_doctor_names_the_missing_compiler(starter_path, tmp_path):
    report = json.loads(studio("doctor", "--json", PATH=str(tmp_path), CXX="no-such-compiler").stdout)
    compiler = next(check for check in report["checks"] if check["name"] == "C++ compiler")
    assert not compiler["ok"] and "Install g++" in compiler["remedy"] and not report["ok"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chat", "--model", "nothing", "--prompt", "hi"), "There is no model 'nothing'"),
        (("chat", "--prompt", " "), "empty"),
        (("chat", "--json"), "--prompt"),
        (("chat", "--prompt", "hi", "--temperature", "-1", "--top-p", "7"), "temperature"),
        (("upcycle", "/no/such/folder", "/tmp/out"), "There is no /no/such/folder"),
    ],
)
def test_what_the_person_can_fix_exits_with_2(starter_path, arguments, words):
    result = studio(*arguments)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr


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
    made = studio("upcycle", str(tmp_path / "dense"), str(tmp_path / "sparse"), "--replicas", "2")
    assert made.returncode == 0, made.stderr
    again = studio("upcycle", str(tmp_path / "dense"), str(tmp_path / "sparse"))
    assert again.returncode == 2 and "not empty" in again.stderr
    options = ("--prompt", "hi", "--max-new-tokens", "3", "--json")
    chat = studio("chat", "--model", str(tmp_path / "sparse"), *options)
    assert chat.returncode == 0, chat.stderr
    assert json.loads(chat.stdout)["routing"]["shape"][:2] == [2, 2]


def test_bench_load_prints_the_documented_form(starter_path):
    report = json.loads(studio("bench", "load", "--repeats", "1", "--json").stdout)
    assert set(report) == {"machine", "work", "rows"}
    rows = [(row["system"], row["weights"]) for row in report["rows"]]
    assert rows == [(system, kind) for kind in ("bf16", "nf4") for system in ("jetmoe-studio", "transformers")]
    assert all(row["load_s"] > 0 and row["peak_gib"] > 0.5 for row in report["rows"])


def test_bench_refuses_weights_and_shapes_it_does_not_know():
    assert "bf16, nf4, fp32" in refused("bench", "generate", "--weights", "int8")
    assert "jetmoe-8b" in refused("bench", "load", "--shape", "llama")


def test_quantize_writes_a_model_that_loads_in_4_bits(starter_path, tmp_path):
    studio("quantize", str(starter_path), str(tmp_path / "nf4"))
    answer = json.loads(
        studio("chat", "--model", str(tmp_path / "nf4"), "--prompt", "Hi", "--max-new-tokens", "4", "--json").stdout
    )
    assert len(answer["token_ids"]) == 4
    assert "4-bit already" in refused("quantize", str(tmp_path / "nf4"), str(tmp_path / "again"))
    assert "no folder" in refused("quantize", str(tmp_path / "none"), str(tmp_path / "again"))


def test_an_unknown_precision_is_refused():
    assert "nf4, bf16, fp32" in refused("chat", "--precision", "int3", "--prompt", "Hi")


def test_chat_with_the_adapter_of_a_run(tmp_path, monkeypatch):
    """The run tells the model."""
    home, run = toy_run(tmp_path, monkeypatch)
    options = ("--prompt", "Say 7", "--max-new-tokens", "6", "--temperature", "0", "--precision", "fp32", "--json")
    tuned = json.loads(studio("chat", "--adapter", run.id[:8], *options, **home).stdout)
    assert set(tuned) == {"text", "adapter", "token_ids", "prompt_tokens", "ttft_s", "decode_tok_s", "routing"}
    base = json.loads(studio("chat", "--model", run.model, *options, **home).stdout)
    assert tuned["adapter"] == run.id[:8] and base["adapter"] is None
    assert tuned["token_ids"] != base["token_ids"]
    assert "neither the folder of a PEFT adapter" in refused("chat", "--adapter", "../nothing", *options, **home)


def test_a_conversation_with_an_adapter(tmp_path, monkeypatch):
    home, run = toy_run(tmp_path, monkeypatch)
    command = [sys.executable, "-m", "studio", "chat", "--adapter", run.id, "--max-new-tokens", "3"]
    result = subprocess.run(
        command, input="Hi\nAgain\n\n", capture_output=True, text=True, check=True, env={**os.environ, **home}
    )
    assert result.stderr.count("a second, the first after") == 2
    assert "once the compiler is done" not in result.stderr


def test_export_writes_adapter_and_merged_model(tmp_path, monkeypatch):
    home, run = toy_run(tmp_path, monkeypatch)
    adapter = json.loads(studio("export", run.id[:8], "--to", str(tmp_path / "a"), "--json", **home).stdout)
    assert adapter == {"folder": str(tmp_path / "a"), "base_model": "toy", "proof": None, "merged": False}
    merged = studio("export", run.id[:8], "--to", str(tmp_path / "b"), "--merge", "--json", **home)
    document = json.loads(merged.stdout)
    assert document["merged"] and document["proof"]["error"] <= document["proof"]["tolerance"]
    assert document["proof"] == json.loads((tmp_path / "b/merge_proof.json").read_text())
    assert "is not empty" in refused("export", run.id, "--to", str(tmp_path / "a"), **home)


def toy_run(tmp_path, monkeypatch):
    """A home with one finished run in it, as environment, and the run."""
    from tests.builders.adapters import finished_run
    from tests.builders.toy_folder import toy_folder

    home = {"STUDIO_HOME": str(tmp_path / "home")}
    monkeypatch.setenv("STUDIO_HOME", home["STUDIO_HOME"])
    return home, finished_run(toy_folder(tmp_path / "toy"))
