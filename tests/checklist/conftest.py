"""One studio with a toy model, which all rows of the checklist question over HTTP; and one that asks for a login."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from studio.backend.chat.engine import Engine
from studio.backend.hosting import accounts
from studio.backend.hosting.exposure import Exposure
from tests.builders.served import serving
from tests.builders.toy_folder import toy_folder

NAME, PASSWORD = "ada", "correct horse, battery"


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr(accounts, "COST", 2**14)
        patch.setattr(accounts, "_NOBODY", accounts._line(2**14, 8, 1, bytes(16), bytes(32)))
        yield folder


@pytest.fixture(scope="package")
def engine(home: Path) -> Engine:
    loaded = Engine()
    loaded.load(str(toy_folder(home / "toy")))
    return loaded


@pytest.fixture(scope="package")
def url(engine: Engine) -> Iterator[str]:
    with serving(engine, Exposure()) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as asking:
        yield asking


@pytest.fixture(scope="package")
def users(home: Path) -> Path:
    file = home / "users.txt"
    accounts.Accounts(file).add(NAME, PASSWORD)
    return file


@pytest.fixture(scope="package")
def guarded(engine: Engine, users: Path) -> Iterator[str]:
    """A studio behind a proxy, with a login."""
    with serving(engine, Exposure(auth=users, proxy=True)) as address:
        yield address
