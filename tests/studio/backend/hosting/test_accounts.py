"""Who may log in: the file, its hashes, and the commands that change it."""

import pytest
from typer.testing import CliRunner

from studio.backend.hosting import accounts
from studio.backend.hosting.accounts import Accounts, hashed, matches
from studio.cli.main import app
from studio.errors import StudioError

PASSWORD = "correct horse, battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The least that a file may ask for."""
    monkeypatch.setattr(accounts, "COST", 2**14)
    monkeypatch.setattr(accounts, "LANES", 1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "users.txt"


def user(*arguments, typed=""):
    return CliRunner().invoke(app, ["user", *arguments], input=typed)


def test_who_is_added_may_log_in_and_who_is_removed_may_not(file):
    assert user("add", "ada", "--file", str(file), typed=f"{PASSWORD}\n").exit_code == 0
    people = Accounts(file)
    assert people.check("ada", PASSWORD)
    for name, password in (("ada", ""), ("ada", PASSWORD + "x"), ("bob", PASSWORD), ("", ""), ("ada", "x" * 5000)):
        assert not people.check(name, password)
    assert user("remove", "ada", "--file", str(file)).exit_code == 0
    assert not people.check("ada", PASSWORD) and people.names() == []


def test_no_password_is_in_the_file_and_nobody_else_reads_it(file):
    Accounts(file).add("ada", PASSWORD)
    Accounts(file).add("bob", PASSWORD)
    lines = file.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["ada", "bob"] and PASSWORD not in file.read_text()
    assert lines[0][4:] != lines[1][4:], "the same password must not look the same"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(StudioError, match=r"Other users can read .*chmod 600"):
        Accounts(file).check("ada", PASSWORD)


def test_a_password_is_changed(file):
    people = Accounts(file)
    assert people.add("ada", PASSWORD) and not people.add("ada", PASSWORD * 2)
    assert people.check("ada", PASSWORD * 2) and not people.check("ada", PASSWORD)


def test_a_hash_keeps_its_parameters(monkeypatch):
    line = hashed(PASSWORD)
    monkeypatch.setattr(accounts, "COST", 2**15)
    assert line.startswith("scrypt$16384$8$1$") and matches(PASSWORD, line) and not matches("x", line)


@pytest.mark.parametrize(
    "line",
    [
        "ada:secret",
        "ada:scrypt$1024$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "ada:scrypt$16385$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "ada:scrypt$67108864$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
        "../x:scrypt$16384$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "=",
    ],
)
def test_a_line_that_is_none_is_named(file, line):
    file.write_text(f"# people\n\n{line}\n")
    file.chmod(0o600)
    with pytest.raises(StudioError, match="Line 3 of"):
        Accounts(file).names()


def test_what_can_not_be_used_is_said(file):
    with pytest.raises(StudioError, match=r"user add NAME --file"):
        Accounts(file).names()
    for name in ("", "a:b", "a\nb", "-x", "x" * 65, "é"):
        with pytest.raises(StudioError, match="can't be a name"):
            Accounts(file).add(name, PASSWORD)
    with pytest.raises(StudioError, match="10 to 1,024 characters; this one has 5"):
        Accounts(file).add("ada", "short")
    with pytest.raises(StudioError, match="has no user 'ada'"):
        Accounts(file).remove("ada")
    assert not file.exists()
