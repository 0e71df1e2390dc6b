"""Adapters in the engine, on a toy JetMoE: who answers, switching, finding, uploading."""

import io
import json
import math
import pickle
import shutil
import stat
import threading
import zipfile
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from jetmoe import JetMoeForCausalLM
from jetmoe.adapters.files import CONFIG, MAX_RANK, WEIGHTS, is_classifier, read_config
from jetmoe.lora import AdapterError
from studio.backend.adapters import upload_checks
from studio.backend.adapters import uploads as adapter_uploads
from studio.backend.adapters.checksums import write_checksums
from studio.backend.adapters.find import choices, find, find_id, require_model
from studio.backend.adapters.uploads import Choice, delete_upload, import_adapter
from studio.backend.chat.compiled_steps import CompiledSteps
from studio.backend.chat.engine import MAX_ENSURED, Engine, Sampling
from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from tests.builders.adapters import finished_run, make_adapter
from tests.builders.toy_folder import toy_folder
from tests.builders.waiting import until

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, repetition_penalty=1.0)
QUESTION = [{"role": "user", "content": "Say 7"}]


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
    engine = Engine()
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


def test_a_seed_gives_the_same_answer_after_anything_else(engine, folder, monkeypatch):
    """Other questions and adapters, a larger cache, and a prompt of several pieces."""
    monkeypatch.setattr("studio.backend.chat.cache.SMALLEST_CACHE", 32)
    monkeypatch.setattr("studio.backend.chat.decoder.PREFILL_TOKENS", 4)
    engine.load_adapter(folder / "one", "one")
    seeded = Sampling(max_new_tokens=8, temperature=1.5, seed=7)

    def seeded_answer(adapter):
        events = list(engine.generate(QUESTION, seeded, adapter=adapter))
        return [(event.token_id, event.logprob) for event in events if event.kind == "token"]

    first = {name: seeded_answer(name) for name in (None, "one")}
    sizes = [engine._decoder.cache_length]
    answer(engine, "one", [{"role": "user", "content": "Say 7 " * 20}])
    sizes.append(engine._decoder.cache_length)
    assert sizes[0] < sizes[1]
    assert {name: seeded_answer(name) for name in ("one", None)} == first
    assert first[None] != first["one"] and engine.status().speed == "native"


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
            until(lambda: len(engine._queue) == 3)
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


# --- by id


def test_an_id_is_all_that_an_answer_needs(engine, folder):
    """What is loaded is the adapter of that id, also for a routing computed again and after another model."""
    one, two = finished_run(folder / "toy", 0), finished_run(folder / "toy", 1)
    prompt = prompt_of(engine)
    right = {None: expected(folder, None, prompt), one.id: expected(folder, "one", prompt)}
    right[two.id] = expected(folder, "two", prompt)
    assert len({tuple(tokens) for tokens in right.values()}) == 3
    for name in (one.id, two.id, None, one.id):
        assert answer(engine, name) == right[name], name
    assert sorted(engine.adapters()) == sorted([one.id, two.id])
    engine.load(str(folder / "toy"), precision="fp32")
    tuned, base = (engine.replay(prompt + right[one.id], len(prompt), adapter=name) for name in (one.id, None))
    assert (tuned.experts != base.experts).any() and engine.adapters() == [one.id]


def test_an_adapter_is_read_again_once_its_files_changed(engine, folder):
    run = finished_run(folder / "toy", 0)
    first = answer(engine, run.id)
    make_adapter(folder / "toy", run.adapter, 1)
    assert answer(engine, run.id) == expected(folder, "two", prompt_of(engine)) != first
    assert engine.adapters() == [run.id]


def test_the_least_recently_used_makes_room(engine, folder):
    engine.load_adapter(folder / "one", "named")
    runs = [finished_run(folder / "toy", seed).id for seed in range(MAX_ENSURED + 1)]
    for run_id in runs[:-1]:
        engine.ensure_adapter(run_id)
    right = answer(engine, runs[0])
    engine.ensure_adapter(runs[-1])
    assert engine.adapters() == ["named", runs[0], *runs[2:]]
    assert answer(engine, runs[0]) == right
    engine.remove_adapter(runs[0])
    engine.remove_adapter("never loaded")
    assert engine.adapters() == ["named", *runs[2:]]
    assert answer(engine, runs[0]) == right


def test_loading_by_id_waits_in_line(engine, folder):
    run = finished_run(folder / "toy", 0)
    right = answer(engine)
    events = engine.generate(QUESTION, GREEDY)
    next(events)
    waiting = [
        threading.Thread(target=engine.ensure_adapter, args=(run.id,)),
        threading.Thread(target=engine.remove_adapter, args=(run.id,)),
    ]
    for thread in waiting:
        thread.start()
    tokens = [event.token_id for event in events if event.kind == "token" and not engine.adapters()]
    for thread in waiting:
        thread.join()
    assert tokens == right


@pytest.mark.parametrize("text", ["0" * 32, "00000000-0000-0000-0000-000000000000", "..", "one", "", ["one"]])
def test_only_ids_that_are_there_are_loaded(engine, folder, text, monkeypatch):
    monkeypatch.chdir(folder)
    for ask in (partial(answer, engine), engine.ensure_adapter):
        with pytest.raises(StudioError, match=r"There is no (adapter|run)|is not loaded"):
            ask(text)
    assert engine.adapters() == []


def test_an_id_of_another_model(engine, folder, tmp_path):
    run = finished_run(toy_folder(tmp_path / "other", seed=5))
    with pytest.raises(StudioError, match=r"was trained on the model .*other, so the adapter does not fit"):
        engine.ensure_adapter(run.id)
    with pytest.raises(StudioError, match="isn't ready"):
        Engine().ensure_adapter(run.id)
    assert answer(engine)


# --- compiled steps, as on a GPU


def test_a_switch_waits_for_the_compiler_and_says_so(folder, monkeypatch):
    is_compiling, may_end = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        is_compiling.set()
        may_end.wait()

    monkeypatch.setattr("studio.backend.chat.compiled_steps.compiled_step", lambda model: slow)
    engine = Engine()
    engine.load(str(folder / "toy"), precision="fp32")
    decoder = engine._decoder
    decoder.steps = CompiledSteps(decoder.model, decoder.context_size, record=True)
    engine.load_adapter(folder / "one", "one")
    decoder.steps.enable()
    assert is_compiling.wait(60)
    events = engine.generate(QUESTION, GREEDY, adapter="one")
    assert "running compilation" in next(events).text
    may_end.set()
    tokens = [event.token_id for event in events if event.kind == "token"]
    assert tokens == expected(folder, "one", prompt_of(engine))


# --- where adapters are


def test_runs_and_folders_are_found(folder):
    run = finished_run(folder / "toy")
    for text in (run.id, run.id[:8], run.folder, run.adapter, str(run.adapter)):
        assert find(text) == (Path(text) if text in (run.adapter, str(run.adapter)) else run.adapter, run, None)
    assert find(folder / "one") == (folder / "one", None, None)
    assert find(run.id[:6]).folder == run.adapter


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
    with pytest.raises(
        StudioError, match=rf"was trained on the model {other}, so the adapter does not fit {folder / 'toy'}"
    ):
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


# --- what a person may pick


def test_choices_are_the_adapters_that_fit(folder, tmp_path):
    store, toy = RunStore(), folder / "toy"
    first, second = finished_run(toy), finished_run(toy)
    store.update(first.id, best_eval_loss=1.23456)
    store.create(Recipe.from_settings({"model": str(toy)}))  # has no adapter yet
    other = finished_run(toy_folder(tmp_path / "other"))
    gone = finished_run(toy_folder(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    uploaded = import_adapter(zipped(folder / "one", tmp_path), "pirate", str(toy))
    latest = import_adapter(zipped(folder / "two", tmp_path), "", str(toy))
    assert choices(str(folder / "toy/../toy")) == [
        (second.id, second.name),
        (first.id, f"{first.name} (held-out loss 1.235)"),
        (latest.id, f"adapter {latest.id[:8]}"),
        (uploaded.id, "pirate"),
    ]
    assert choices(str(tmp_path / "other")) == [(other.id, other.name)]
    assert choices(gone.model) == [(gone.id, gone.name)] and choices("starter") == []


# --- uploads


def zipped(folder: Path, to: Path, prefix: str = "") -> list[Path]:
    """A .zip of an adapter's two files."""
    file = to / f"{folder.name}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (CONFIG, WEIGHTS):
            archive.write(folder / name, prefix + name)
    return [file]


def uploads(home: Path) -> list[str]:
    return [path.name for path in (home / "adapters").glob("*")]


SURPLUS = {
    "a folder of PEFT": ["README.md"],
    "a snapshot of the Hub": [
        "snapshots/1f/.gitattributes",
        "snapshots/1f/tokenizer.json",
        "snapshots/1f/training_args.bin",
    ],
    "a zip of macOS": ["one/.DS_Store", f"__MACOSX/one/._{CONFIG}", f"__MACOSX/one/._{WEIGHTS}"],
    "a zip of Windows": ["one\\README.md"],
    "a folder of Trainer": [
        "README.md",
        f"checkpoint-2/{CONFIG}",
        f"checkpoint-2/{WEIGHTS}",
        "checkpoint-2/optimizer.pt",
    ],
}
"""What other programs put beside an adapter."""


@pytest.mark.parametrize("what", SURPLUS)
def test_files_beside_an_adapter_are_ignored(folder, tmp_path, home, what):
    prefix = {"a snapshot of the Hub": "snapshots/1f/", "a zip of macOS": "one/", "a zip of Windows": "one\\"}.get(
        what, ""
    )
    (file,) = zipped(folder / "one", tmp_path, prefix)
    with zipfile.ZipFile(file, "a") as archive:
        for name in SURPLUS[what]:
            archive.writestr(name, b"x")
    stored = find(import_adapter([file], "", str(folder / "toy")).id).folder
    assert {path.name for path in stored.iterdir()} == {CONFIG, WEIGHTS, "about.json"}
    assert adapter_sha256(stored) == adapter_sha256(folder / "one")


def test_loose_files_beside_an_adapter_are_ignored(folder, tmp_path, home):
    (tmp_path / "README.md").touch()
    (tmp_path / "training_args.bin").touch()
    files = [
        tmp_path / "README.md",
        *(folder / "one" / name for name in (CONFIG, WEIGHTS)),
        tmp_path / "training_args.bin",
    ]
    assert import_adapter(files, "", str(folder / "toy")).id in uploads(home)


@pytest.mark.parametrize("packed", ["loose", "zip", "a folder in a zip"])
def test_an_uploaded_adapter_answers(engine, folder, tmp_path, home, packed):
    files = [folder / "one" / WEIGHTS, folder / "one" / CONFIG]
    if packed != "loose":
        files = zipped(folder / "one", tmp_path, prefix="" if packed == "zip" else "one/")
    choice = import_adapter(files, " pirate ", str(folder / "toy"))
    assert choice == Choice(choice.id, "pirate") and len(choice.id) == 32
    assert answer(engine, choice.id) == expected(folder, "one", prompt_of(engine))
    found = find(choice.id)
    assert found == find_id(choice.id) == find(found.folder) and (found.run, found.name) == (None, "pirate")
    assert found.folder == home / "adapters" / choice.id and found.model == str(folder / "toy")
    assert {path.name for path in found.folder.iterdir()} == {CONFIG, WEIGHTS, "about.json"}
    assert found.upload.sha256 == adapter_sha256(folder / "one") == adapter_sha256(found.folder)
    delete_upload(choice.id)
    assert uploads(home) == [] and choices(str(folder / "toy")) == []
    with pytest.raises(StudioError, match="There is no adapter"):
        delete_upload(choice.id)


def adapter_sha256(folder: Path) -> str:
    from studio.backend.system.files import sha256

    return sha256(folder / WEIGHTS)


@pytest.mark.parametrize("junk", [5, True, "my_score", [["x"]], {"score": 1}])
def test_junk_for_a_head_is_refused_and_never_a_classifier(folder, tmp_path, junk):
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(folder / "one" / name, tmp_path / name)
    config = json.loads((tmp_path / CONFIG).read_text())
    for change in ({"modules_to_save": junk}, {"modules_to_save": ["score", ["x"]]}, {"lora_alpha": True}):
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(AdapterError):
            read_config(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config | {"modules_to_save": junk}))
    assert not is_classifier(tmp_path)


def test_the_configuration_is_written_anew(folder, tmp_path):
    """Nothing that the person's file says goes on to where stock PEFT reads it."""
    stored = json.loads((folder / "one" / CONFIG).read_text())
    stored |= {"base_model_name_or_path": "/etc/passwd", "auto_mapping": {"parent_library": "os"}, "evil": "<script>"}
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    choice = import_adapter([tmp_path / CONFIG, folder / "one" / WEIGHTS], "", str(folder / "toy"))
    text = (find(choice.id).folder / CONFIG).read_text()
    assert not any(word in text for word in ("passwd", "parent_library", "evil", "script"))
    config = peft.LoraConfig.from_pretrained(find(choice.id).folder)
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 4, "toy")


def changed_config(folder: Path, **settings) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | settings))


def changed_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = min(tensors)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS)


def forged(folder: Path, offsets=None, dtype=None, shape=None) -> None:
    """One tensor's line in the header says something else."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    line = header[min(name for name in header if name != "__metadata__")]
    line |= {
        "data_offsets": offsets or line["data_offsets"],
        "dtype": dtype or line["dtype"],
        "shape": shape or line["shape"],
    }
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


BAD_FILES = {
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        "adapter_model.bin is a pickle, which can run",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "An adapter is .*; this is adapter_config.json. Upload"),
    "other names": (
        lambda f: (f / WEIGHTS).rename(f / "model.safetensors"),
        "An adapter is .*; this is .*model.safetensors",
    ),
    "a large configuration": (
        lambda f: changed_config(f, text="x" * (64 << 10)),
        r"adapter_config.json has .* bytes, and at most 65,536",
    ),
    "half a configuration": (lambda f: (f / CONFIG).write_text('{"peft_type": "LORA", "r": '), "is damaged"),
    "another type": (lambda f: changed_config(f, peft_type="IA3"), "is not a LoRA adapter"),
    "another rank": (lambda f: changed_config(f, r=8), "of another shape than this model's"),
    "a high rank": (lambda f: changed_config(f, r=MAX_RANK + 1), f"ranks must be whole numbers from 1 to {MAX_RANK}"),
    "true for a rank": (lambda f: changed_config(f, r=True), "ranks must be whole numbers"),
    "a word for a switch": (lambda f: changed_config(f, use_rslora="no"), "invalid value for use_rslora"),
    "nan": (lambda f: changed_weights(f, lambda t: t.fill_(math.nan)), "values that are not finite"),
    "infinity": (lambda f: changed_weights(f, lambda t: t.index_fill(0, torch.tensor([1]), math.inf)), "not finite"),
    "integers": (
        lambda f: changed_weights(f, lambda t: t.to(torch.int32)),
        r"\(I32\) holds values that are not finite",
    ),
    "another shape": (lambda f: changed_weights(f, lambda t: t[:1].clone()), "of another shape than this model's"),
    "half the weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "is damaged"),
    "no weights in it": (lambda f: (f / WEIGHTS).write_bytes(b""), "is damaged"),
    "bytes after the weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"MZ"), "is damaged"),
    "a header of 1 TB": (
        lambda f: (f / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little")),
        "is damaged: its header",
    ),
    "a pickle in disguise": (lambda f: torch.save({"x": torch.ones(1)}, f / WEIGHTS), "is damaged"),
    "an old pickle in disguise": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"x": 1})), "is damaged"),
    "a pickled configuration": (lambda f: (f / CONFIG).write_bytes(pickle.dumps({"r": 4})), "is damaged"),
    "tensors in one place": (lambda f: forged(f, offsets=[0, 4]), "is damaged"),
    "a tensor outside": (lambda f: forged(f, offsets=[0, 1 << 40]), "is damaged"),
    "a tensor backwards": (lambda f: forged(f, offsets=[8, 4]), "is damaged"),
    "a shape of no end": (lambda f: forged(f, shape=[1 << 62, 1 << 62]), "is damaged"),
    "another type in the header": (lambda f: forged(f, dtype="F8_E5M2"), "is damaged|of another shape"),
    "no type in the header": (lambda f: forged(f, dtype="pickle"), "is damaged"),
    "a header that is a list": (lambda f: (f / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"[]"), "is damaged"),
    "a header of brackets": (
        lambda f: (f / WEIGHTS).write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
        "is damaged",
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_what_is_no_adapter_of_the_model_is_refused(folder, tmp_path, home, what):
    change, sentence = BAD_FILES[what]
    bad = tmp_path / "bad"
    shutil.copytree(folder / "one", bad, ignore=shutil.ignore_patterns("README.md"))
    change(bad)
    with pytest.raises(StudioError, match=sentence) as raised:
        import_adapter(sorted(bad.iterdir()), "bad", str(folder / "toy"))
    assert len(str(raised.value)) < 400 and uploads(home) == []


def test_a_huge_rank_is_refused_before_anything_is_built(engine, folder, tmp_path, monkeypatch):
    """In a folder that the engine is told of, too."""
    bad = shutil.copytree(folder / "one", tmp_path / "bad")
    changed_config(bad, r=MAX_RANK)

    def built(*args, **kwargs):
        raise AssertionError("a layer was built")

    engine.load_adapter(folder / "one", "one")
    monkeypatch.setattr(peft.PeftModel, "add_adapter", built)
    with pytest.raises(StudioError, match="of another shape"):
        engine.load_adapter(bad, "bad")


def test_an_adapter_of_another_model_is_not_taken(folder, tmp_path, home):
    wide = toy_folder(tmp_path / "wide", intermediate_size=128)
    files = [folder / "one" / CONFIG, folder / "one" / WEIGHTS]
    with pytest.raises(StudioError, match="of another shape than this model's"):
        import_adapter(files, "", str(wide))
    with pytest.raises(StudioError, match=r"jetmoe/jetmoe-8b is not downloaded yet\. Load it once"):
        import_adapter(files, "", "jetmoe/jetmoe-8b")
    with pytest.raises(StudioError, match="There is no model 'nothing'"):
        import_adapter(files, "", "nothing")
    assert uploads(home) == []


@pytest.mark.parametrize("name", ["a" * 81, "../x", "a\nb", "a\\b"])
def test_a_name_that_is_none(folder, home, name):
    with pytest.raises(StudioError, match="up to 80 printable characters"):
        import_adapter([folder / "one" / CONFIG, folder / "one" / WEIGHTS], name, str(folder / "toy"))
    assert uploads(home) == []


def member(name: str, mode: int = 0, **attributes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


# What a .zip holds beside or in place of the adapter's two files: members and their bytes.
BAD_MEMBERS = {
    "one twice": (
        [(CONFIG, b"{}"), (CONFIG, b"{}"), (WEIGHTS, b"")],
        "holds adapter_config.json twice",
    ),
    "two folders": ([(f"a/{CONFIG}", b"{}"), (f"b/{WEIGHTS}", b"")], "the two in one folder"),
    "two adapters": ([(f"{x}/{y}", b"") for x in "ab" for y in (CONFIG, WEIGHTS)], "several adapters, in a, b"),
    "notes of macOS alone": ([(f"__MACOSX/._{CONFIG}", b""), (f"__MACOSX/._{WEIGHTS}", b"")], "this is nothing"),
    "a way out beside": ([(CONFIG, b"{}"), (WEIGHTS, b""), ("../x", b"")], "outside of itself"),
    "a way out": ([(f"../{CONFIG}", b"{}"), (f"../{WEIGHTS}", b"")], "outside of itself"),
    "an absolute path": ([(f"/{CONFIG}", b"{}"), (f"/{WEIGHTS}", b"")], "outside of itself"),
    "a Windows path": ([(f"C:\\{CONFIG}", b"{}"), (WEIGHTS, b"")], "outside of itself"),
    "a way out with backslashes": ([(f"..\\{CONFIG}", b"{}"), (WEIGHTS, b"")], "outside of itself"),
    "a pickle": ([(CONFIG, b"{}"), ("adapter_model.bin", b"")], "is a pickle, which can run code"),
    "a zip in it": ([("inner.zip", b"")], "An adapter is .*; this is inner.zip"),
    "nothing": ([], "An adapter is .*; this is nothing"),
    "a link": ([(member(CONFIG, stat.S_IFLNK | 0o777), b"/etc/passwd"), (WEIGHTS, b"")], "a link or a device"),
    "a device": ([(CONFIG, b"{}"), (member(WEIGHTS, stat.S_IFCHR), b"")], "a link or a device"),
    "a bomb that says so": ([(CONFIG, b"\0" * (1 << 20)), (WEIGHTS, b"")], "at most 65,536 are allowed"),
    "very many": ([(f"{i}.txt", b"") for i in range(20_000)], "list of members is too long"),
    "another packing": (
        [(member(CONFIG, compress_type=zipfile.ZIP_LZMA), b"{}"), (WEIGHTS, b"")],
        "an unusual compression",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", BAD_MEMBERS)
def test_a_zip_of_anything_else_is_refused(folder, tmp_path, home, what):
    members, sentence = BAD_MEMBERS[what]
    file = tmp_path / "bad.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    with pytest.raises(StudioError, match=sentence) as raised:
        import_adapter([file], "bad", str(folder / "toy"))
    assert len(str(raised.value)) < 400 and uploads(home) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["bad.zip"]


def test_a_bomb_that_lies_about_its_size(folder, tmp_path, home):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, b"{}" + b" " * (1 << 20))
        archive.writestr(WEIGHTS, b"")
    size, small = ((1 << 20) + 2).to_bytes(4, "little"), (2).to_bytes(4, "little")
    assert content.getvalue().count(size) == 2  # before the member and in the list
    file = tmp_path / "bad.zip"
    file.write_bytes(content.getvalue().replace(size, small))
    with pytest.raises(StudioError, match=r"The .zip is damaged|larger than its stated size"):
        import_adapter([file], "bad", str(folder / "toy"))
    assert uploads(home) == []


def test_damaged_zips_are_sentences(folder, tmp_path, home):
    """Whatever byte is wrong."""
    (whole,) = zipped(folder / "one", tmp_path)
    good = whole.read_bytes()
    heads = [*range(0, 80), *range(len(good) - 180, len(good))]
    for at in heads:
        whole.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        work = tmp_path / f"work{at}"
        work.mkdir()
        try:
            upload_checks.collect([whole], work)
        except StudioError as error:
            assert str(error)
        shutil.rmtree(work)
    whole.write_bytes(good[: len(good) // 2])
    with pytest.raises(StudioError, match=r"The .zip is damaged"):
        import_adapter([whole], "", str(folder / "toy"))
    assert uploads(home) == []


def test_a_zip_that_unpacks_to_much_is_refused_before_it_is_written(folder, home, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "one" / CONFIG, CONFIG)
        archive.writestr(WEIGHTS, bytes(32 << 20))
    with pytest.raises(StudioError, match="unpacks to more than 100 times its size"):
        import_adapter([bomb], "", str(folder / "toy"))
    assert uploads(home) == []


def flip(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


def test_a_damaged_adapter_is_refused_by_all_its_names(folder, home):
    run, upload = finished_run(folder / "toy"), import_one(folder)
    shutil.copytree(folder / "one", run.adapter, dirs_exist_ok=True)
    write_checksums(run.adapter)
    names = (run.id, run.id[:13], run.adapter, run.folder)
    assert all(find(name).run.id == run.id for name in names) and find(upload.id).name == "one"
    flip(run.adapter / WEIGHTS)
    flip(home / "adapters" / upload.id / WEIGHTS)
    for name in (*names, upload.id):
        with pytest.raises(StudioError, match=rf"is damaged: {WEIGHTS} has changed"):
            find(name)


def import_one(folder: Path, name: str = "one", owner: str = "") -> Choice:
    return import_adapter([folder / name / CONFIG, folder / name / WEIGHTS], name, str(folder / "toy"), owner)


def test_an_owner_has_each_adapter_once_and_so_many_of_them(folder, home, monkeypatch):
    first = import_one(folder, owner="user:ada")
    assert [import_one(folder, owner="user:ada") for _ in range(3)] == [first] * 3 and uploads(home) == [first.id]
    assert import_one(folder, owner="user:bob").id != first.id
    monkeypatch.setattr(adapter_uploads, "OWN_UPLOADS", 1)
    with pytest.raises(StudioError, match="You have 1 uploaded adapters"):
        import_one(folder, "two", "user:ada")
    assert import_one(folder, "two", "user:eve").title == "two"


DAMAGED = ("", "{", "[]", "\xff", '{"name": 3}', '{"name": "x", "owner": null}', '{"name": "\\ud800"}')


@pytest.mark.parametrize("about", DAMAGED)
def test_a_damaged_description_hides_one_adapter_only(folder, home, about):
    files = [folder / "one" / CONFIG, folder / "one" / WEIGHTS]
    damaged, whole = (import_adapter(files, name, str(folder / "toy")) for name in ("damaged", "whole"))
    (home / "adapters" / damaged.id / "about.json").write_text(about, encoding="latin-1")
    assert [each.id for each in choices(str(folder / "toy"))] == [whole.id]
    with pytest.raises(StudioError, match="There is no adapter"):
        find_id(damaged.id)
    adapter_uploads.transfer_owner("user:ada", "hf:ada")


def test_a_full_disk(folder, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(StudioError, match="The disk is too full"):
        import_adapter([folder / "one" / CONFIG, folder / "one" / WEIGHTS], "", str(folder / "toy"))
    assert uploads(home) == []


def test_a_run_is_not_deleted_as_an_upload(folder):
    run = finished_run(folder / "toy")
    with pytest.raises(StudioError, match="is the adapter of a run"):
        delete_upload(run.id)
    assert run.adapter.is_dir()
