"""What `doctor` finds: versions, who reaches the page, and what the page tells everybody."""

import json

import pytest
from typer.testing import CliRunner

from studio.backend import doctor
from studio.backend.hosting.accounts import Accounts
from studio.cli.main import app
from studio.errors import StudioError
from tests.builders.in_process import run_json
from tests.builders.toy_folder import toy_folder


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "STUDIO_PUBLIC", "STUDIO_AUTH", "STUDIO_PROXY", "SPACE_ID", *doctor.OPENING):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(doctor, "run_json", run_json)


def examined(*flags: str) -> tuple[int, dict[str, dict]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *flags])
    report = json.loads(result.stdout)
    assert all(set(check) == {"name", "ok", "detail", "remedy"} for check in report["checks"])
    assert result.exit_code == (0 if report["ok"] else 2)
    return result.exit_code, {check["name"]: check for check in report["checks"]}


def test_the_page_is_asked_itself(monkeypatch):
    for name in ("_answers", "_trains"):
        monkeypatch.setattr(doctor, name, lambda model: doctor.Check("left out", True, ""))
    _, checks = examined("--deep")
    assert checks["page"]["ok"] and "monitoring and run history" in checks["page"]["detail"], checks["page"]
    assert checks["versions"]["ok"] and "gradio 6." in checks["versions"]["detail"]
    assert checks["exposure"]["ok"] and "this machine only" in checks["exposure"]["detail"]


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, checks = examined()
    assert code == 2 and not checks["C compiler"]["ok"] and "Install gcc" in checks["C compiler"]["remedy"]


def test_a_public_page_without_a_login_is_a_finding(monkeypatch, tmp_path):
    code, checks = examined("--host", "0.0.0.0")
    assert code == 2 and not checks["exposure"]["ok"] and "--auth FILE" in checks["exposure"]["remedy"]
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert not examined()[1]["exposure"]["ok"]
    assert examined("--public")[1]["exposure"]["ok"]
    file = tmp_path / "users.txt"
    Accounts(file).add("ada", "correct horse")
    assert examined("--auth", str(file))[1]["exposure"]["ok"]
    file.chmod(0o644)
    assert "chmod 600" in examined("--auth", str(file))[1]["exposure"]["remedy"]


def test_secrets_are_named_and_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    _, checks = examined("--host", "0.0.0.0", "--public")
    assert not checks["secrets"]["ok"] and "HF_TOKEN" in checks["secrets"]["detail"]
    assert "canary" not in json.dumps(checks)
    assert examined()[1]["secrets"]["ok"], "on one's own machine they are one's own"


@pytest.mark.parametrize("name", doctor.OPENING)
def test_variables_that_open_the_page_are_findings(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    code, checks = examined()
    assert code == 2 and name in checks["gradio's variables"]["remedy"]


def test_other_versions_are_findings(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "" if name == "peft" else "1.0")
    _, checks = examined()
    assert not checks["versions"]["ok"] and "peft is missing, not ==" in checks["versions"]["detail"]
    assert "gradio 1.0, not ==" in checks["versions"]["detail"]


def test_a_model_answers_and_trains(tmp_path):
    _, checks = examined("--deep", "--model", str(toy_folder(tmp_path / "toy")))
    assert checks["answering"]["ok"] and "tokens, " in checks["answering"]["detail"], checks["answering"]
    assert checks["training"]["ok"], checks["training"]


def test_what_a_trial_says_is_the_remedy(monkeypatch):
    def refuses(command):
        raise StudioError("There is no model 'none'.")

    monkeypatch.setattr(doctor, "run_json", refuses)
    assert doctor._answers("none") == doctor.Check("answering", False, "none", "There is no model 'none'.")
    assert not doctor._trains("none").ok and not doctor._page().ok
