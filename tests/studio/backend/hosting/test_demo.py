"""A demo's limits: when they are on, and what they refuse."""

import shutil
from dataclasses import replace

import pytest

from studio.backend.data import hub_dataset, stored, uploads
from studio.backend.hosting import demo
from studio.backend.models import catalog, starter
from studio.backend.recipe import Recipe
from studio.backend.runs import room
from studio.backend.system.files import require_space
from studio.backend.system.home import home
from studio.backend.training import queue as jobs
from studio.errors import StudioError
from studio.ui.chat.conversation import checked_text
from studio.ui.chat.sampling_form import read_sampling
from studio.ui.page.status import demo_note
from studio.ui.server.limits import FOLDER_BYTES

GIB = 2**30
SAMPLING = (512, 0.7, 0.9, 40, 0.0, 1.0, "", "")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    for name in ("STUDIO_DEMO", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def on(monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")


@pytest.mark.parametrize(("asked", "is_demo"), [("", True), ("0", False), ("1", True)])
def test_a_space_is_a_demo_unless_its_owner_says_otherwise(monkeypatch, asked, is_demo):
    monkeypatch.setenv("SPACE_ID", "me/studio")
    monkeypatch.setenv("STUDIO_DEMO", asked)
    assert (demo.limits() is not None) == is_demo


def test_elsewhere_it_is_on_when_asked_for(monkeypatch):
    assert demo.limits() is None and demo_note() == ""
    monkeypatch.setenv("STUDIO_DEMO", "yes")
    with pytest.raises(StudioError, match="STUDIO_DEMO is 'yes': set it to 1"):
        demo.limits()


def test_messages_and_answers_are_short(on):
    assert checked_text("x" * 4000)
    with pytest.raises(StudioError, match="at most 4,000"):
        checked_text("x" * 4001)
    with pytest.raises(StudioError, match="at most 256 tokens"):
        read_sampling(*SAMPLING)
    assert read_sampling(256, *SAMPLING[1:]).max_new_tokens == 256


def test_runs_are_small_and_the_model_is_everybodys(on):
    limits = demo.limits()
    with pytest.raises(StudioError, match="all visitors share the loaded model"):
        limits.refuse_another_model()
    limits.check_recipe(Recipe(data="identity", max_steps=60), ["starter"])
    with pytest.raises(StudioError, match=r"max_steps from 1 to 60, batch_size .* up to 8,192, r up to 32"):
        limits.check_recipe(Recipe(data="identity", max_steps=0, batch_size=64, max_length=512, r=64), ["starter"])
    with pytest.raises(StudioError, match="model starter or a/b, precision auto"):
        limits.check_recipe(
            Recipe(model="jetmoe/jetmoe-8b", data="identity", max_steps=9, precision="bf16"), ["starter", "a/b"]
        )
    for costly in ({"eval_steps": 1, "save_steps": 1}, {"eval_steps": 0}):
        with pytest.raises(StudioError, match="max_steps / eval_steps up to 6"):
            limits.check_recipe(Recipe(data="identity", max_steps=60, **costly), ["starter"])
    costly = {"sample_prompts": ("Hi",) * 8, "sample_tokens": 512, "eval_share": 0.5}
    with pytest.raises(StudioError, match=r"eval_share up to 0\.2, sample_tokens up to 1,024"):
        limits.check_recipe(Recipe(data="identity", max_steps=60, **costly), ["starter"])
    with pytest.raises(StudioError, match="this one has more"):
        limits.check_rows(2001)


def test_a_probe_is_limited_by_what_it_reads(on):
    probe = Recipe(data="identity", task="classify", method="probe", packing=False, max_length=512)
    demo.limits().check_recipe(probe, ["starter"])
    with pytest.raises(StudioError, match=r"limited to max_length up to 512 for a classifier\. "):
        demo.limits().check_recipe(replace(probe, max_length=513), ["starter"])


def test_files_and_the_queue_are_small(on, tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_bytes(b"x" * 5_000_001)
    with pytest.raises(StudioError, match="the limit is 5"):
        uploads.keep(file)
    queue = jobs.Jobs()
    for _ in range(4):
        queue.store.create(Recipe(data="identity"))
    with pytest.raises(StudioError, match="4 runs are queued already"):
        queue.start(Recipe(data="identity"))


def test_what_a_space_stores_fits_its_disk(on, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/studio")
    shared = FOLDER_BYTES + stored.KEPT_BYTES + hub_dataset.KEPT_BYTES + starter.BUILD_BYTES
    largest = max(model.download_gib for model in catalog.RELEASED) * GIB
    disk = 50e9
    assert demo.limits().quota_gib * GIB + shared + largest < disk
    assert room.quota_gib(home()) * GIB + shared < disk, "without the limits of a demo, with the starter"
    # Uploads and adapters get what is free of the plan, whatever the disk of the host has.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**13, 0, 10**13))
    monkeypatch.setenv("STUDIO_DISK_GIB", "0.000001")
    with pytest.raises(StudioError, match="The disk is too full"):
        require_space(home(), 5000)


def test_the_page_says_so_and_how_to_have_more(on, monkeypatch):
    assert "answers of up to 256 tokens" in demo_note() and "duplicate" not in demo_note()
    monkeypatch.setenv("SPACE_ID", "me/studio")
    assert 'href="https://huggingface.co/spaces/me/studio?duplicate=true"' in demo_note()
    monkeypatch.setenv("SPACE_ID", 'me/"><script>')
    assert "script" not in demo_note()
