"""What a container and a Space may use of their host."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from studio.backend.models import catalog, placement
from studio.backend.models.needs import needs_of
from studio.backend.runs.room import quota_gib
from studio.backend.system import plan
from studio.errors import StudioError

GIB = 2**30


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 64 cores, 256 GiB of memory and 4 TiB of disk; returns the folder of its control groups."""
    for name in ("SPACE_ID", "MEMORY", "CPU_CORES", "STUDIO_DISK_GIB", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plan, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    memory = SimpleNamespace(total=256 * GIB, available=200 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096 * GIB, total=8192 * GIB))
    monkeypatch.setattr(plan, "is_mounted", lambda folder: "bucket" in folder.parts)
    return tmp_path / "cgroup"


@pytest.fixture
def space(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CPU basic, whose processes use 1 GiB and whose home holds 1 MiB; returns the home."""
    for name, value in {"SPACE_ID": "me/studio", "MEMORY": "16Gi", "CPU_CORES": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plan.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    processes = [SimpleNamespace(info={"memory_info": memory}) for memory in (SimpleNamespace(rss=GIB), None)]
    monkeypatch.setattr(psutil, "process_iter", lambda names: processes)
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hub"))
    (tmp_path / "home" / "hub").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home" / "hub" / "weights").write_bytes(bytes(2**20))
    return tmp_path / "home"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_without_limits_it_is_the_machine(host, tmp_path):
    write(host, memory_dot_max="max\n", cpu_dot_max="max 100000\n", memory_dot_current=str(250 * GIB))
    assert (plan.total_memory(), plan.available_memory(), plan.cores()) == (256 * GIB, 200 * GIB, 64)
    assert plan.free_disk(tmp_path / "not" / "yet") == 4096 * GIB and plan.total_disk(tmp_path) == 8192 * GIB
    assert quota_gib(tmp_path) == 50
    assert plan.thread_limits() == {}


def test_a_container_has_its_limits_and_can_drop_cached_files(host):
    write(host, memory_dot_max=str(8 * GIB), memory_dot_current=str(5 * GIB), cpu_dot_max="150000 100000",
          memory_dot_stat=f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\n")  # fmt: skip
    assert (plan.total_memory(), plan.available_memory(), plan.cores()) == (8 * GIB, 5 * GIB, 2)


def test_an_older_container_has_its_limits_too(host):
    write(host / "memory", memory_dot_limit_in_bytes=str(8 * GIB), memory_dot_usage_in_bytes=str(3 * GIB),
          memory_dot_stat=f"total_inactive_file {GIB}\n")  # fmt: skip
    write(host / "cpu", cpu_dot_cfs_quota_us="-1", cpu_dot_cfs_period_us="100000")
    assert (plan.total_memory(), plan.available_memory(), plan.cores()) == (8 * GIB, 6 * GIB, 64)


def test_a_space_has_what_its_plan_gives(host, space, monkeypatch):
    """What its control group says may be about the whole host."""
    write(host / "memory", memory_dot_limit_in_bytes=str(2**63 - 4096), memory_dot_usage_in_bytes=str(250 * GIB))
    assert (plan.total_memory(), plan.available_memory(), plan.cores()) == (16 * GIB, 15 * GIB, 2)
    assert plan.free_disk(space) == plan.SPACE_DISK_GIB * GIB - 2**20
    assert plan.total_disk(space) == plan.SPACE_DISK_GIB * GIB and quota_gib(space) == plan.SPACE_DISK_GIB / 2
    assert plan.thread_limits() == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan.thread_limits() == {}, "what somebody sets stays"


def test_mounted_storage_is_not_on_the_disk_of_the_plan(space, tmp_path):
    (tmp_path / "bucket").mkdir()
    assert plan.free_disk(tmp_path / "bucket" / "models") == 4096 * GIB


def test_a_model_that_the_space_can_not_hold_is_refused_before_its_download(space, monkeypatch):
    """The host would hold it."""
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(placement.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    large = catalog.entry("jetmoe/jetmoe-8b")
    with pytest.raises(StudioError, match=r"needs 18\.0 GiB of memory and 15\.0 GiB are free"):
        placement.placement(large, "bf16")
    monkeypatch.setenv("STUDIO_DISK_GIB", "10")
    monkeypatch.setattr("studio.backend.models.catalog.look", lambda model, token: (model, int(15.9 * GIB)))
    assert "15.9 GiB are needed and 10.0 GiB are free" in needs_of(large, "nf4").problem
    monkeypatch.setenv("STUDIO_DISK_GIB", "large")
    with pytest.raises(StudioError, match="STUDIO_DISK_GIB must be a number"):
        plan.free_disk(space)


def test_a_size_is_in_the_units_of_the_plan():
    sizes = {"16Gi": 16 * GIB, "16G": 16 * GIB, "512Mi": GIB // 2, "1.5Ti": 1536 * GIB, "1024": 1024, "max": None}
    assert {text: plan._bytes(text) for text in sizes} == sizes
