"""Who can reach the page: what is refused before a server starts."""

from pathlib import Path

import pytest

from studio.backend.hosting.accounts import Accounts
from studio.backend.hosting.exposure import Exposure, is_loopback
from studio.errors import StudioError

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "STUDIO_PUBLIC", "STUDIO_AUTH", "STUDIO_PROXY", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_alone_by_default():
    exposure = Exposure.from_environment()
    exposure.require_safe()
    assert exposure.local and not exposure.forwarded and exposure.accounts() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "studio.example.org", "127.0.0.1.example.org"])
def test_others_need_a_login_or_a_word(host):
    with pytest.raises(StudioError, match=r"--auth FILE .* or --public"):
        Exposure.from_environment(host).require_safe()
    Exposure.from_environment(host, public=True).require_safe()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_addresses_of_this_machine(host):
    assert is_loopback(host)
    Exposure.from_environment(host).require_safe()


def test_a_proxy_makes_it_public():
    with pytest.raises(StudioError, match="behind a proxy"):
        Exposure.from_environment(proxy=True).require_safe()


def test_a_login_needs_somebody_who_may(tmp_path):
    file = tmp_path / "users.txt"
    exposure = Exposure.from_environment("0.0.0.0", auth=file)
    with pytest.raises(StudioError, match="user add"):
        exposure.require_safe()
    Accounts(file).add("ada", "correct horse")
    exposure.require_safe()
    Accounts(file).remove("ada")
    with pytest.raises(StudioError, match="has no users"):
        exposure.require_safe()


def test_the_environment_says_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with pytest.raises(StudioError):
        Exposure.from_environment().require_safe()
    monkeypatch.setenv("STUDIO_PUBLIC", "1")
    Exposure.from_environment().require_safe()
    monkeypatch.setenv("STUDIO_AUTH", str(tmp_path / "none.txt"))
    with pytest.raises(StudioError, match="There is no"):
        Exposure.from_environment().require_safe()


def test_a_space_is_public_by_its_nature(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    exposure = Exposure.from_environment("0.0.0.0")
    exposure.require_safe()
    assert exposure.forwarded and not exposure.local
