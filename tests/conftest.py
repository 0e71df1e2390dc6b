"""What all tests share: a home, ports, a compile cache and one torch thread for each worker; and which tests run
together.

`make test` runs two workers. A test belongs to a group, and a group runs on one worker, in order:

- "heavy": whatever uses the real starter (the fixture `starter_path`) or compiles (the mark `compiles`)
- "stock": modules that compare with unmodified libraries, which one process of a worker imports for all of them
- otherwise its module, so that fixtures of a module are made once
"""

from __future__ import annotations

import gc
import os
import sqlite3
from contextlib import suppress

# Before torch is imported, and inherited by servers and trainers: workers share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.builders.fake_repos import FakeRepos

HEAVY = "heavy"
BROWSER = Path(__file__).parent / "e2e"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups and pytest the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "starter_path" in item.fixturenames:  # type: ignore[attr-defined]
            item.add_marker("starter")
        if item.path.is_relative_to(BROWSER):
            item.add_marker("browser")
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    # The longest first, so that both workers end at the same time.
    items.sort(key=_rank)


def pytest_collection_finish() -> None:
    # What is imported by now stays. Left in, it makes each search for garbage stop a page and its server for long.
    gc.collect()
    gc.freeze()


def _group(item: pytest.Item) -> str:
    if any(item.get_closest_marker(name) for name in ("starter", "compiles")):
        return HEAVY
    is_stock = hasattr(item.module, "run_stock")  # type: ignore[attr-defined]
    return "stock" if is_stock else item.nodeid.partition("::")[0]


def _rank(item: pytest.Item) -> int:
    group = next(item.iter_markers("xdist_group")).args[0]
    return [group == HEAVY, "browser" in item.keywords, True].index(True)


@pytest.fixture(scope="session", autouse=True)
def worker_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of this worker's own."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "STUDIO_HOME": folder,
            "GRADIO_TEMP_DIR": folder / "gradio",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "TORCHINDUCTOR_CACHE_DIR": folder / "compiled",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }.items():
            patch.setenv(name, str(value))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def unsynchronized_disk() -> Iterator[None]:
    """Don't wait for the disk at each commit and each write, which is a fifth of a toy's training run."""
    connect = sqlite3.connect

    def connect_unsynchronized(*args, **kwargs) -> sqlite3.Connection:
        db = connect(*args, **kwargs)
        with suppress(sqlite3.Error):  # of a damaged file, which the code under test reports
            db.execute("PRAGMA synchronous = OFF")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_unsynchronized)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def starter_path(worker_home: Path) -> Path:
    """The real starter model, in this worker's home; built once, in the person's own, for all of them."""
    from studio.backend.models import starter
    from studio.backend.system.home import home

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STUDIO_HOME")
        starter.build()
        shared = home()
    (worker_home / "models").mkdir()
    for name in ("models/starter", "downloads"):
        (worker_home / name).symlink_to(shared / name)
    return starter.path()


@pytest.fixture(scope="session")
def dense_gguf(starter_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model that the starter is made of."""
    from studio.backend.models import starter

    return starter.dense_gguf(tmp_path_factory.mktemp("dense"), lambda fraction, text: None)


@pytest.fixture(scope="session")
def starter_engine(starter_path: Path):
    """The starter in an engine; whoever changes it puts it back."""
    from studio.backend.chat.engine import Engine

    engine = Engine()
    engine.load("starter")
    return engine


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that leaves torch with two threads would make all later tests of its worker several times slower."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For kernels that share their work out among threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_olmoe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OLMoE of 4 layers and 16 experts in the layout of the releases."""
    from tests.builders.toy_folder import small_olmoe

    return small_olmoe(tmp_path_factory.mktemp("olmoe"))


@pytest.fixture(scope="session")
def served_repos() -> Iterator[FakeRepos]:
    from tests.builders.fake_repos import FakeRepos, serving

    with serving(FakeRepos()) as hub:
        yield hub


@pytest.fixture
def repos(
    served_repos: FakeRepos, small_olmoe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> FakeRepos:
    """A hub with the small OLMoE as `fake_repos.TINY`, an empty cache and no faults."""
    from tests.builders.fake_repos import TINY, use

    use(served_repos, monkeypatch, tmp_path)
    served_repos.add_model(TINY, small_olmoe_path)
    return served_repos
