"""Exports of a toy run: what stock PEFT and transformers make of the files, the merge proof, the card, bad targets."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer

from jetmoe import JetMoeForCausalLM
from jetmoe.loading.load import load, quantized_share
from studio.backend.chat.engine import Engine
from studio.backend.export import export as exporting
from studio.backend.export import merge as merging
from studio.backend.export.base import Base
from studio.backend.export.export import export
from studio.backend.export.merge import prove
from studio.backend.export.model_card import model_card
from studio.backend.export.quantized import export_quantized
from studio.backend.models import placement
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from tests.builders.adapters import finished_run, make_adapter
from tests.builders.stock import run_stock
from tests.builders.toy_folder import toy_folder

IDS = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(0))
# Runs without `jetmoe`: a folder and, for an adapter, the folder of its base; logits of IDS and a rendered chat.
STOCK = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, out, ids = *sys.argv[1:4], json.loads(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
if base:
    import peft
    model = peft.PeftModel.from_pretrained(model, folder)
else:
    chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n", chat
assert "jetmoe" not in sys.modules
with torch.no_grad():
    save_file({"logits": model.eval()(torch.tensor(ids)).logits}, out)
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def toy(tmp_path) -> Path:
    return toy_folder(tmp_path / "toy")


@pytest.fixture
def run(toy) -> Run:
    return finished_run(toy)


def stock_logits(tmp_path: Path, folder: Path, base: Path | str = "") -> torch.Tensor:
    out = tmp_path / "stock.safetensors"
    arguments = [str(folder), str(base), str(out), json.dumps(IDS.tolist())]
    run_stock(STOCK, *arguments)
    return load_file(out)["logits"]


@torch.no_grad()
def logits(toy: Path, adapter: Path | None = None) -> torch.Tensor:
    """In fp32, of a model loaded anew."""
    model = JetMoeForCausalLM.from_pretrained(toy, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.eval()(IDS).logits


def front_matter(folder: Path) -> dict:
    return ModelCard.load(folder / "README.md").data.to_dict()


def parts_left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


# --- what is written


def test_the_adapter_answers_the_same_in_stock_peft(run, toy, tmp_path):
    exported = export(run.id[:8], tmp_path / "out")
    assert exported.proof is None and exported.base_model == "toy"
    files = {path.name for path in exported.folder.iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "toy"
    expected = logits(toy, run.adapter)
    torch.testing.assert_close(stock_logits(tmp_path, exported.folder, toy), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(toy)).abs().max() > 0.1


def test_the_merged_model_answers_the_same_in_stock_transformers(run, toy, tmp_path):
    exported = export(run.id, tmp_path / "out", merge=True)
    stored = {tensor.dtype for tensor in load_file(exported.folder / "model.safetensors").values()}
    assert stored == {torch.bfloat16}
    stock = stock_logits(tmp_path, exported.folder)
    torch.testing.assert_close(stock, logits(exported.folder), rtol=1e-5, atol=1e-5)
    alone, tuned = logits(toy), logits(toy, run.adapter)
    assert (stock - tuned).norm() < 0.05 * (tuned - alone).norm()


def test_the_proof_is_counted_on_the_files(run, toy, tmp_path):
    exported = export(run.id, tmp_path / "out", merge=True)
    proof = json.loads((exported.folder / "merge_proof.json").read_text())
    assert proof == exported.proof
    assert proof["error"] <= proof["tolerance"] == 0.25 and proof["from_base"] > 0.75 and proof["change"] > 0.01
    assert set(proof["rounding_loss"]) == {"attention experts", "MLP experts", "kv_proj"}
    assert f"| {proof['error']:.4g}".replace("-", "\\-") in (exported.folder / "README.md").read_text()


def test_four_bits_are_merged_into_four_bits(toy, tmp_path):
    """The rounding of 4 bits takes a part of the change, which the figures say."""
    strong = make_adapter(toy, tmp_path / "strong", 1, std=1.0)
    exported = export(strong, tmp_path / "out", merge=True, four_bit=True, model=str(toy))
    assert exported.proof["precision"] == "nf4" and 0.01 < exported.proof["rounding_loss"]["MLP experts"] < 0.5
    model = load(JetMoeForCausalLM, exported.folder)
    assert quantized_share(model) > 0.5
    assert "import jetmoe  # required" in (exported.folder / "README.md").read_text()
    with pytest.raises(StudioError, match=r"is in 4 bits: merge in 4 bits \(--four-bit\)"):
        export(make_adapter(toy, tmp_path / "one", 1), tmp_path / "again", merge=True, model=str(exported.folder))


def test_a_change_too_small_for_four_bits_fails_its_proof(toy, tmp_path):
    weak = make_adapter(toy, tmp_path / "weak", 1, std=1e-4)
    with pytest.raises(StudioError, match=r"4 bits are too coarse for so small a change.*Nothing was written"):
        export(weak, tmp_path / "out", merge=True, four_bit=True, model=str(toy))
    assert not (tmp_path / "out").exists()


def test_no_file_names_this_machine(run, tmp_path):
    for name, merge in (("adapter", False), ("merged", True)):
        for file in export(run.id, tmp_path / name, merge).folder.iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_a_merged_model_is_a_model_of_the_studio(run, tmp_path):
    from studio.backend.chat.engine import Engine, Sampling

    engine = Engine()
    engine.load(str(export(run.id, tmp_path / "out", merge=True).folder))
    events = engine.generate([{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=3))
    assert [event.kind for event in events][-1] == "done"


# --- the proof


def test_a_merge_that_changed_nothing_fails(run, tmp_path, monkeypatch):
    from jetmoe.adapters import wrappers as lora

    monkeypatch.setattr(merging, "merge", lambda model: lora.unwrap(model) or {})
    with pytest.raises(StudioError, match=r"does not answer like base and adapter: its error is (1\.0|0\.9)"):
        export(run.id, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists() and not parts_left(tmp_path)


def test_files_that_hold_other_weights_fail(run, tmp_path, monkeypatch):
    """What was written counts, not what was in memory."""
    real = JetMoeForCausalLM.save_pretrained

    def careless(self, folder):
        self.model.layers[1].mlp.output_linear.weight.data.mul_(0.5)
        real(self, folder)

    monkeypatch.setattr(JetMoeForCausalLM, "save_pretrained", careless)
    with pytest.raises(StudioError, match="does not answer like base and adapter"):
        export(run.id, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists() and not parts_left(tmp_path)


def test_figures_of_the_proof():
    alone, tuned = torch.zeros(3, 5), torch.zeros(3, 5)
    alone[:, 1], tuned[:, 2] = 1.0, 1.0
    proof = prove(alone, tuned, tuned, "bf16")
    assert proof["error"] == 0 and proof["from_base"] == 1 and proof["same_next_token"] == 1
    assert proof["change"] == pytest.approx(2**0.5) and proof["tokens"] == 3
    for merged in (alone, tuned * float("nan"), tuned * 1.5):
        with pytest.raises(StudioError, match="does not answer"):
            prove(alone, tuned, merged, "bf16")
    with pytest.raises(StudioError, match="changes nothing"):
        prove(alone, alone, alone, "bf16")


# --- the model card


def test_the_card_has_figures_data_and_recipe(run, tmp_path):
    for step, loss in enumerate((3.0, 1.5, 2.0), start=1):
        run.events.append("log", step, {"loss": loss, "learning_rate": 1e-4})
    run.events.append("eval", 1, {"eval_loss": 2.5})
    run.events.append("eval", 3, {"eval_loss": float("nan")})
    run.events.append("routing", 1, {"flip_rate": 0.0625, "js": 0.125, "by_layer": {}})  # of the best checkpoint
    run.events.append("routing", 3, {"flip_rate": 0.75, "js": 0.5})
    (run.folder / "data.json").write_text(json.dumps({"file": "rows.jsonl", "examples": 40, "fingerprint": "abc"}))
    folder = export(run.id, tmp_path / "out").folder
    text = (folder / "README.md").read_text()
    for row in ("| loss | 3 | 2 | 1.5 |", "| held\\-out loss | 2.5 | 2.5 | 2.5 |", "| examples | 40 |", "| 0.0625 |"):
        assert row in text
    assert front_matter(folder) == {
        "base_model": "toy",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["jetmoe", "mixture-of-experts", "lora"],
    }
    recipe = Recipe.from_settings(yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))
    assert recipe.preset == run.recipe().preset and recipe.model == "toy"


def test_the_card_names_a_data_set_of_the_hub(toy, tmp_path):
    run = finished_run(Path(toy), data="hub:me/rows@main:train[:10]")
    folder = export(run.id, tmp_path / "out").folder
    assert front_matter(folder)["datasets"] == ["me/rows"]
    assert "data: hub:me/rows@main:train[:10]" in (folder / "README.md").read_text()


def test_the_card_of_a_known_model_has_its_licence(toy):
    from studio.backend.adapters.find import Found
    from studio.backend.models import catalog

    base = Base("starter", catalog.STARTER)
    card = ModelCard(model_card(Found(Path("pirate"), None), base, None))
    assert card.data.license == "apache-2.0" and card.data.base_model == "starter"


EVIL = "<script>alert(1)</script>"


def test_what_people_wrote_stays_text(tmp_path):
    """In the names of run, model and data, and in the recipe's prompts; rendered with HTML allowed."""
    model = toy_folder(tmp_path / 'toy\n---\nlicense: "mit"\n```\n<b>')
    data = "<img src=x onerror=alert(1)>|`[a](javascript:b).csv"
    prompts = [f"```\n{EVIL}\n---\n", f"~~~\n````\n{EVIL}"]
    run = finished_run(model, sample_prompts=prompts, data=data)
    run = RunStore().get(run.id)
    object.__setattr__(run, "name", f"{EVIL} `x` [link](javascript:alert(1)) ![i](x)\n# one")
    (run.folder / "data.json").write_text(json.dumps({"file": data, "fingerprint": EVIL}))
    found = exporting.find(run.adapter)._replace(run=run)
    text = model_card(found, Base.of(found, None), None)
    card = ModelCard(text)
    assert "license" not in card.data.to_dict() and card.data.base_model == model.name
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    for tag in ("<script", "<img", "<a ", "<b>"):
        assert tag not in rendered
    assert rendered.count("<h1>") == 1 and rendered.count("<h2>") == 3


# --- what goes wrong


def test_a_folder_that_is_not_empty_is_refused_and_kept(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for target in ("full", "file", "full/../full", "full/.."):
        with pytest.raises(StudioError, match="is not empty"):
            export(run.id, tmp_path / target)
    with pytest.raises(StudioError, match="Writing to"):
        export(run.id, tmp_path / "file/below")
    with pytest.raises(StudioError, match="Writing to"):
        export(run.id, tmp_path / ("a" * 300))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_an_empty_folder_will_do(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (export(run.id, tmp_path / "empty").folder / "README.md").is_file()
    assert (export(run.id, tmp_path / "deep/er").folder / "README.md").is_file()


def test_unknown_runs_pickles_and_other_models(run, toy, tmp_path):
    queued = RunStore().create(Recipe.from_settings({"model": str(toy)}))
    other = toy_folder(tmp_path / "other", seed=3)
    pickled = make_adapter(toy, tmp_path / "pickled", 1)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    cut = make_adapter(toy, tmp_path / "cut", 1)
    (cut / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    for source, model, words in (
        ("0000", None, "There is no run"),
        ("../../etc", None, "neither the folder"),
        (queued.id, None, "has no adapter: it is queued"),
        (run.id, str(other), "was trained on the model"),
        (make_adapter(toy, tmp_path / "mine", 1), None, "name its base model"),
        (make_adapter(toy, tmp_path / "mine", 1), "nothing", "There is no model 'nothing'"),
        (pickled, str(toy), "other formats can run code"),
        (cut, str(toy), "is damaged"),
    ):
        with pytest.raises(StudioError, match=words):
            export(source, tmp_path / "out", model=model)
    with pytest.raises(StudioError, match="Only a merged model can be stored in 4 bits"):
        export(run.id, tmp_path / "out", four_bit=True)
    wide = toy_folder(tmp_path / "wide", intermediate_size=128)
    with pytest.raises(StudioError, match="another shape"):
        export(tmp_path / "mine", tmp_path / "out", merge=True, model=str(wide))
    assert not (tmp_path / "out").exists() and not parts_left(tmp_path)


def test_too_little_space_is_said_before_anything_is_loaded(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(merging, "load", None)
    for merge in (False, True):
        with pytest.raises(StudioError, match="disk is too full"):
            export(run.id, tmp_path / "out", merge)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_disk_that_fills_up_leaves_nothing(run, tmp_path, monkeypatch, error):
    def full(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(JetMoeForCausalLM, "save_pretrained", full)
    with pytest.raises(StudioError, match=r"No space left.*Free some space there"):
        export(run.id, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists() and not parts_left(tmp_path)


def test_tokenizers_come_along(run, tmp_path):
    folder = export(run.id, tmp_path / "out", merge=True).folder
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_a_model_is_written_in_4_bits_and_loads_without_quantizing(tmp_path, monkeypatch):
    """On a Space it is on a volume that can't be written, under the path that STUDIO_MODEL names."""
    base = toy_folder(tmp_path / "toy")
    written = export_quantized(str(base), tmp_path / "models" / "toy-nf4").folder
    quantized = JetMoeForCausalLM.from_pretrained(written)
    assert quantized_share(quantized) > 0.5
    first = load(JetMoeForCausalLM, base, quantization="nf4", dtype=torch.bfloat16)
    assert torch.equal(quantized(IDS).logits, first(IDS).logits)
    assert ModelCard.load(written / "README.md").data.base_model == "toy"
    for path in (written, *written.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setenv("STUDIO_MODEL", str(written))
    engine = Engine()
    engine.load(placement.first_model())
    assert engine.status().precision == "nf4"
    with pytest.raises(StudioError, match="not empty"):
        export_quantized(str(base), written)
