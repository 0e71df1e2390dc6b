"""Adapters in the engine, on a toy JetMoE: who answers, switching, compiled steps, and where adapters are found."""

import threading
import time
from pathlib import Path

import peft
import pytest
import torch

from jetmoe import JetMoeForCausalLM
from jetmoe.lora import lora_config
from studio.backend.adapters import adapter_folder, find, require_model
from studio.backend.engine import Engine, Sampling
from studio.backend.recipe import Recipe
from studio.backend.runs import Run, RunStore
from studio.errors import StudioError
from tests.studio.toy_folder import toy_folder

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, repetition_penalty=1.0)
QUESTION = [{"role": "user", "content": "Say 7"}]


def make_adapter(base: Path, folder: Path, seed: int, preset: str = "all", std: float = 0.2) -> Path:
    """An adapter that changes answers, as PEFT saves it."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(JetMoeForCausalLM.from_pretrained(base), lora_config(preset, r=4, lora_alpha=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    adapted.save_pretrained(folder)
    return folder


def finished_run(base: Path, seed: int = 1, **settings) -> Run:
    store = RunStore()
    run = store.create(Recipe.from_settings({"model": str(base), **settings}))
    make_adapter(base, run.adapter, seed)
    return store.finish(run.id, "done")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the model in `toy`, and adapters in `one`, `two` and `moa`."""
    folder = tmp_path_factory.mktemp("adapters")
    base = toy_folder(folder / "toy")
    for seed, name in enumerate(("one", "two")):
        make_adapter(base, folder / name, seed)
    make_adapter(base, folder / "moa", 2, "moa")
    return folder


@pytest.fixture
def engine(folder) -> Engine:
    engine = Engine(compile_steps=False)
    engine.load(str(folder / "toy"), precision="fp32")
    return engine


def answer(engine: Engine, adapter: str | None = None, messages=QUESTION) -> list[int]:
    return [e.token_id for e in engine.generate(messages, GREEDY, adapter=adapter) if e.kind == "token"]


@torch.no_grad()
def expected(folder: Path, adapter: str | None, prompt: list[int]) -> list[int]:
    """The likeliest tokens, of a model loaded anew, without keys and values."""
    model = JetMoeForCausalLM.from_pretrained(folder / "toy")
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, folder / adapter)
    ids = list(prompt)
    for _ in range(GREEDY.max_new_tokens):
        ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def prompt_of(engine: Engine) -> list[int]:
    return next(e.trace.token_ids.tolist() for e in engine.generate(QUESTION, GREEDY) if e.kind == "prompt")


# --- who answers


def test_every_answer_is_that_of_a_model_loaded_anew(engine, folder):
    """Whatever was in use before: keys and values of another adapter are never read."""
    for name in ("one", "two", "moa"):
        engine.load_adapter(folder / name, name)
    assert engine.adapters() == ["one", "two", "moa"]
    prompt = prompt_of(engine)
    right = {name: expected(folder, name, prompt) for name in (None, "one", "two", "moa")}
    assert len({tuple(tokens) for tokens in right.values()}) == 4
    for name in (None, "one", "two", "one", None, "moa", "moa", None, "two"):
        assert answer(engine, name) == right[name], name


def test_replay_takes_the_adapter(engine, folder):
    engine.load_adapter(folder / "one", "one")
    events = list(engine.generate(QUESTION, GREEDY, adapter="one"))
    rows = [event.trace for event in events if event.trace is not None]
    ids = [i for trace in rows for i in trace.token_ids.tolist()]
    tuned, base = (engine.replay(ids, len(rows[0]), adapter=name) for name in ("one", None))
    assert (tuned.experts[:, :, : len(rows[0])] == rows[0].experts).all()
    assert (tuned.experts != base.experts).any()


def test_an_answer_is_never_changed_under_way(engine, folder):
    """Others who load and switch meanwhile wait until it is written."""
    engine.load_adapter(folder / "one", "one")
    right = {name: answer(engine, name) for name in (None, "one")}
    events = engine.generate(QUESTION, GREEDY)
    tokens = []
    others = [
        threading.Thread(target=engine.load_adapter, args=(folder / "two", "two")),
        threading.Thread(target=lambda: other.extend(answer(engine, "one"))),
    ]
    other: list[int] = []
    for event in events:
        tokens += [event.token_id] if event.kind == "token" else []
        if len(tokens) == 3 and event.kind == "token":
            for thread in others:
                thread.start()
            time.sleep(0.2)
            assert engine.adapters() == ["one"] and not other
    for thread in others:
        thread.join()
    assert tokens == right[None] and other == right["one"]
    assert engine.adapters() == ["one", "two"]


def test_one_of_the_same_name_is_replaced(engine, folder):
    engine.load_adapter(folder / "one", "mine")
    first = answer(engine, "mine")
    engine.load_adapter(folder / "two", "mine")
    assert engine.adapters() == ["mine"] and answer(engine, "mine") != first


@pytest.mark.parametrize("name", ["../../etc", "layers", "lora_B", "weight", "0", "v1.0 <b>é</b>"])
def test_any_name_will_do(engine, folder, name):
    base = answer(engine)
    engine.load_adapter(folder / "one", name)
    assert answer(engine, name) != base and answer(engine) == base


def test_another_model_forgets_the_adapters(engine, folder):
    engine.load_adapter(folder / "one", "one")
    engine.load(str(folder / "toy"), precision="fp32")
    assert engine.adapters() == []
    with pytest.raises(StudioError, match="'one' is not loaded; loaded: none"):
        answer(engine, "one")


# --- compiled steps


def wait_for(engine: Engine, text: str) -> None:
    deadline = time.monotonic() + 300
    while engine.status().speed != text and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.status().speed == text


def test_compiled_steps_are_those_of_the_adapter_in_use(folder):
    engine = Engine()
    engine.load(str(folder / "toy"), precision="fp32")
    wait_for(engine, "compiled")
    engine.load_adapter(folder / "one", "one")
    decoder = engine._decoder
    prompt = prompt_of(engine)
    right = {name: expected(folder, name, prompt) for name in (None, "one")}
    assert answer(engine, "one") == right["one"]
    assert "has just changed" in engine.status().speed and decoder.compiled.get(decoder.cache_length) is None
    assert answer(engine, "one") == right["one"]
    wait_for(engine, "compiled")
    assert decoder.compiled.get(decoder.cache_length) is not None
    assert answer(engine, "one") == right["one"]
    assert answer(engine) == right[None] and engine.status().speed.startswith("eager: the adapter")


def test_a_switch_waits_for_the_compiler_and_says_so(folder):
    engine = Engine()
    engine.load(str(folder / "toy"), precision="fp32")
    engine.load_adapter(folder / "one", "one")
    list(answer(engine))
    list(answer(engine))  # the second one of the model alone: it is compiled for
    wait_for(engine, "compiling")
    notices = [e.text for e in engine.generate(QUESTION, GREEDY, adapter="one") if e.kind == "notice"]
    assert any("compiler" in text for text in notices)
    assert answer(engine, "one") == expected(folder, "one", prompt_of(engine))


# --- where adapters are


def test_runs_and_folders_are_found(folder):
    run = finished_run(folder / "toy")
    for text in (run.id, run.id[:8], run.folder, run.adapter, str(run.adapter)):
        assert find(text) == (Path(text) if text in (run.adapter, str(run.adapter)) else run.adapter, run)
    assert find(folder / "one") == (folder / "one", None)
    assert adapter_folder(run.id[:6]) == run.adapter


@pytest.mark.parametrize("text", ["nothing", "../nothing", "../../etc/passwd", "", "a" * 5000, "\0", "0000", "ab'--"])
def test_what_is_not_there_is_a_sentence(text):
    with pytest.raises(StudioError, match=r"runs list|folder of a PEFT adapter"):
        find(text)


def test_a_run_without_an_adapter_yet(folder):
    run = RunStore().create(Recipe.from_settings({"model": str(folder / "toy")}))
    with pytest.raises(StudioError, match="has no adapter: it is queued, at step 0"):
        find(run.id)


def test_an_adapter_of_another_model(engine, folder, tmp_path):
    other = toy_folder(tmp_path / "other", seed=5)
    run = finished_run(other)
    with pytest.raises(StudioError, match=rf"was trained on the model {other}.*not on {folder / 'toy'}"):
        engine.load_adapter(run.id, "other")
    require_model(find(run.id), str(tmp_path / "other/../other"))
    wide = toy_folder(tmp_path / "wide", intermediate_size=128)
    with pytest.raises(StudioError, match="another shape"):
        engine.load_adapter(make_adapter(wide, tmp_path / "adapter", 1), "wide")
    assert engine.adapters() == [] and answer(engine)


def test_a_pickle_is_never_opened(engine, folder, tmp_path):
    pickled = make_adapter(folder / "toy", tmp_path / "pickled", 1)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(StudioError, match=r"holds no adapter_model.safetensors; other formats can run code"):
        engine.load_adapter(pickled, "pickled")


def test_nothing_is_loaded_before_a_model_is(folder):
    with pytest.raises(StudioError, match="isn't ready"):
        Engine().load_adapter(folder / "one", "one")
