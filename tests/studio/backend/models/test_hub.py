"""Models of the Hub: what is refused before a download, downloads that fail and resume, and what is listed later."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from studio.backend.models import catalog, hub, needs, transfer
from studio.errors import StudioError
from tests.builders.fake_repos import TINY, FakeRepos
from tests.builders.waiting import until

PARTS = [f"model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))


def weights_sent(repos: FakeRepos) -> list[str]:
    """Files of weights that were asked for, each once for its size and once for its content."""
    return [path.rpartition("/")[2] for path, _ in repos.requests if path.endswith(".safetensors")]


def cached_files() -> list[str]:
    return sorted(path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*"))


def test_a_download_takes_safe_files_and_tells_its_speed(repos, small_olmoe_path):
    repos.repos[TINY] |= {"pytorch_model.bin": b"unsafe", "modeling_evil.py": b"unsafe"}
    told: list[tuple[float, str]] = []
    folder = catalog.prepare(TINY, lambda *step: told.append(step))
    assert cached_files() == sorted(file.name for file in small_olmoe_path.iterdir())
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told) and told[-1][0] == 1.0
    assert any("MB/s" in text and "left" in text for _, text in told)
    assert "bytes=" not in str(told) and hub.find(hub.parse(TINY)) == folder
    repos.status = 500, {}
    assert catalog.prepare(TINY) == folder, "a downloaded model needs no network"


def test_a_downloaded_model_is_listed_with_its_sizes(repos):
    assert TINY not in [model.id for model in catalog.models()]
    catalog.prepare(TINY)
    model = next(model for model in catalog.models() if model.id == TINY)
    assert model.family == "olmoe" and model.chat_template and model.needs_gib["nf4"] > 0 and catalog.ready(TINY)
    assert any(row["id"] == TINY and row["ready"] for row in catalog.rows())


def test_a_cut_keeps_complete_files_and_the_next_try_downloads_the_rest(repos):
    repos.cut = PARTS[3]
    with pytest.raises(StudioError, match=r"answers with error 503.*complete files are kept"):
        catalog.prepare(TINY)
    assert not catalog.ready(TINY) and not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    kept = set(cached_files())
    assert PARTS[3] not in kept and PARTS[0] in kept
    repos.heal()
    repos.requests.clear()
    catalog.prepare(TINY)
    assert catalog.ready(TINY) and not kept & set(weights_sent(repos))


def test_a_short_cut_resumes_in_the_middle_of_the_file(repos, monkeypatch, small_olmoe_path):
    """huggingface_hub asks again for the rest of the file."""
    answer = type(repos).answer

    def answer_again(self: FakeRepos, path: str, has_token: bool = False):
        self.cut = "" if self.is_cut else self.cut
        return answer(self, path, has_token)

    monkeypatch.setattr(type(repos), "answer", answer_again)
    repos.cut = PARTS[1]
    folder = catalog.prepare(TINY)
    assert repos.is_cut and (folder / PARTS[1]).read_bytes() == (small_olmoe_path / PARTS[1]).read_bytes()


def faulty(repos: FakeRepos, **faults) -> None:
    for name, value in faults.items():
        setattr(repos, name, value)


REFUSED = {
    "unknown": (lambda repos: repos.repos.clear(), "The Hub has no model me/tiny-olmoe. Check the name"),
    "gated": (lambda repos: repos.gated.add(TINY), "is a gated model. Accept its terms.*HF_TOKEN"),
    "no access": (lambda repos: faulty(repos, status=(401, {})), "The Hub has no model|refuses access.*HF_TOKEN"),
    "gone": (lambda repos: faulty(repos, status=(404, {})), "The Hub has no model|answers with error 404"),
    "busy": (lambda repos: faulty(repos, status=(429, {"Retry-After": "7"})), "too many requests.*in 7 seconds"),
    "short": (lambda repos: faulty(repos, short=PARTS[0]), "download of me/tiny-olmoe failed: Consistency.*try again"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_failures_say_what_to_do_and_leave_no_model(repos, what):
    fault, words = REFUSED[what]
    fault(repos)
    with pytest.raises(StudioError, match=words):
        catalog.prepare(TINY)
    assert not catalog.ready(TINY) and not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def changed_config(**changes):
    def change(files: dict[str, bytes]) -> None:
        files["config.json"] = json.dumps(json.loads(files["config.json"]) | changes).encode()

    return change


def only_pickles(files: dict[str, bytes]) -> None:
    for name in [name for name in files if "safetensors" in name]:
        del files[name]
    files["pytorch_model.bin"] = b"unsafe"


UNUSABLE = {
    "another architecture": (changed_config(model_type="llama"), "is a 'llama' model. Pick a JetMoE or OLMoE"),
    "code": (
        changed_config(model_type="evil", auto_map={"AutoModel": "m.E"}),
        "code of its own, which the studio never",
    ),
    "GPTQ": (changed_config(quantization_config={"quant_method": "gptq", "bits": 4}), "can't load .gptq.*16-bit"),
    "AWQ": (changed_config(quantization_config={"quant_method": "awq"}), "can't load .awq"),
    "pickles": (only_pickles, "only as pickle files .pytorch_model.bin.*safetensors"),
    "no weights": (
        lambda files: [files.pop(n) for n in list(files) if "safetensors" in n],
        "has no safetensors weights",
    ),
    "no config": (lambda files: files.pop("config.json"), "has no config.json"),
    "damaged config": (lambda files: files.update({"config.json": b"{"}), "config.json of me/tiny-olmoe is damaged"),
    "no tokenizer": (lambda files: [files.pop(n) for n in list(files) if "tokenizer" in n], "has no tokenizer"),
    "strange config": (changed_config(model_type=["olmoe"]), "Pick a JetMoE or OLMoE"),
    "huge config": (lambda files: files.update({"config.json": b" " * 1_000_001}), "larger than 1 MB"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_the_studio_can_not_load_is_refused_before_the_download(repos, what):
    change, words = UNUSABLE[what]
    change(repos.repos[TINY])
    for ask in (catalog.prepare, lambda model: needs.needs_of(catalog.entry(model), "auto")):
        with pytest.raises(StudioError, match=words):
            ask(TINY)
    assert not weights_sent(repos) and cached_files() == []


def test_a_revision_must_exist_and_is_part_of_the_id(repos):
    with pytest.raises(StudioError, match="me/tiny-olmoe has no revision 'v9'"):
        catalog.prepare(f"{TINY}@v9")
    catalog.prepare(f"{TINY}@main")
    assert catalog.ready(f"{TINY}@main")


def test_a_token_opens_a_gated_model_and_is_not_used_for_others(repos, monkeypatch):
    repos.gated.add(TINY)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(StudioError, match="gated"):
        needs.needs_of(catalog.entry(TINY), "auto", token=False)
    assert {token for _, token in repos.requests} == {None}
    assert catalog.prepare(TINY) and ("Bearer hf_mine" in {token for _, token in repos.requests})


def test_offline_nothing_is_asked_and_the_catalog_knows_the_sizes(repos, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StudioError, match="Unset HF_HUB_OFFLINE"):
        catalog.prepare(TINY)
    found = needs.needs_of(catalog.entry("allenai/OLMoE-1B-7B-0924"), "nf4")
    assert found.download_gib == 12.9 and found.memory_gib == 5.5 and "HF_HUB_OFFLINE" in found.notice
    assert not repos.requests


def test_the_real_sizes_are_checked_before_a_download(repos, monkeypatch):
    found = needs.needs_of(catalog.entry(TINY), "auto")
    sizes = sum(len(data) for data in repos.repos[TINY].values())
    assert found.download_gib == pytest.approx(sizes / 2**30) and found.model.licence == "mit" and not found.problem
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "The disk is too full" in needs.needs_of(catalog.entry(TINY), "auto").problem
    with pytest.raises(StudioError, match=r"The disk is too full.*set HF_HOME"):
        catalog.prepare(TINY)
    assert not weights_sent(repos)


def test_two_downloads_of_one_model_wait_for_each_other(repos):
    repos.gate.hold()
    texts: list[str] = []
    first = Thread(target=catalog.prepare, args=(TINY,))
    second = Thread(target=catalog.prepare, args=(TINY, lambda fraction, text: texts.append(text)))
    first.start()
    until(lambda: weights_sent(repos))
    second.start()
    until(lambda: any("Waiting for another download" in text for text in texts))
    repos.gate.allow()
    first.join(60)
    second.join(60)
    gets = [name for name in weights_sent(repos) if name == PARTS[0]]
    assert catalog.ready(TINY) and len(gets) == 2, "one HEAD and one GET"


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": 7}', b'{"weight_map": {"a": 7}}'])
def test_a_damaged_index_is_an_incomplete_model(repos, index):
    repos.repos[TINY]["model.safetensors.index.json"] = index
    with pytest.raises(StudioError, match="lacks files that its index names"):
        catalog.prepare(TINY)
    assert not catalog.ready(TINY) and TINY in [model.id for model in catalog.models()]


def test_the_time_left_has_a_unit_that_fits():
    assert transfer.text("a/b", 0, 13.8e9, 0) == "Downloading a/b: 0.0 of 13.8 GB"
    assert transfer.text("a/b", 3.8e9, 13.8e9, 100) == "Downloading a/b: 3.8 of 13.8 GB, 38.0 MB/s, 4 min left"
    assert transfer.text("a/b", 1e6, 5e6, 2) == "Downloading a/b: 1.0 of 5.0 MB, 0.5 MB/s, 8 s left"
    assert transfer.text("a/b", 1e8, 13.8e9, 100).endswith("1.0 MB/s, 3.8 h left")
