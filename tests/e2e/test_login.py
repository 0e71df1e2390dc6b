"""The login in a browser, of a studio that others reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from studio.backend.chat.engine import Engine
from studio.backend.hosting import accounts
from studio.backend.hosting.exposure import Exposure
from tests.builders.served import serving
from tests.builders.toy_folder import toy_folder

PASSWORD = "correct horse, battery"


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(accounts, "COST", 2**14)
    accounts.Accounts(tmp_path / "users.txt").add("ada", PASSWORD)
    engine = Engine()
    engine.load(str(toy_folder(tmp_path / "toy")))
    with serving(engine, Exposure(auth=tmp_path / "users.txt")) as url:
        yield url


def log_in(page: Page, password: str) -> None:
    page.locator("input").first.fill("ada")
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Login").click()


def test_who_knows_the_password_gets_in(guarded: str, browser: Browser):
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(guarded)
    log_in(page, "something else")
    expect(page.get_by_text("Incorrect")).to_be_visible()
    log_in(page, PASSWORD)
    expect(page.locator(".status-ready")).to_be_visible()
    page.locator("#box textarea").fill("Hello")
    page.locator("#box .submit-button").click()
    expect(page.locator("#stats .figures")).to_be_visible()
    expect(page.locator("#routing .rp-answer-tokens .rp-tok").first).to_be_visible()
    page.reload()
    expect(page.locator(".status-ready")).to_be_visible()
    page.close()
    assert not errors
