"""Rows of the checklist in README.md that no other test decides, asked of a studio with a toy model."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from hypothesis import given
from hypothesis import strategies as st

from studio.backend.chat.engine import Engine
from studio.backend.training.queue import Jobs
from studio.errors import StudioError
from studio.ui.chat.sampling_form import read_sampling
from studio.ui.finetune.recipe_form import NAMES
from studio.ui.page.layout import build, launch_settings
from tests.builders.waiting import until
from tests.checklist.conftest import NAME, PASSWORD

ROOT = Path(__file__).parents[2]
API = ("chat", "classify", "routing")
JUNK = ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, [[1, ["x" * 50, None]]], -1e300)


def config(client: httpx.Client) -> dict:
    return client.get("config").json()


def ask(client: httpx.Client, body: dict, session: str = "row") -> dict:
    """The end of a queued event."""
    joined = client.post("gradio_api/queue/join", json={"session_hash": session, **body})
    assert joined.status_code == 200, joined.text
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data:"))
    raise AssertionError("the stream ended before the event")


def test_row_1_the_page_is_built_without_a_deprecation_warning():
    """Servers of browser tests import every module in the same way: `tests/e2e/eager_app.py`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("error", UserWarning)
        engine, jobs = Engine(), Jobs()
        build(engine, jobs)
        launch_settings(engine, jobs)


def test_row_3_three_endpoints_are_public(client: httpx.Client, url: str):
    found = Client(url, verbose=False).view_api(return_format="dict")
    assert ([*found["named_endpoints"]], found["unnamed_endpoints"]) == ([f"/{name}" for name in API], {})
    public = [each["api_name"] for each in config(client)["dependencies"] if each["api_visibility"] != "private"]
    assert public == [*API]


def test_row_4_handlers_called_raw_with_junk_refuse_it(guarded: str, home: Path):
    """Each of them, from as many addresses, so that no limit stops it, and several at a time."""
    before = sorted(str(path) for path in (home / "runs").rglob("*"))
    with httpx.Client(base_url=guarded, timeout=60) as asking:
        assert asking.post("/login", data={"username": NAME, "password": PASSWORD}).status_code == 200

        def call(handler: dict) -> None:
            address = {"X-Forwarded-For": f"203.0.113.{handler['id']}"}
            with httpx.Client(base_url=guarded, timeout=60, cookies=asking.cookies, headers=address) as one:
                for junk in JUNK:
                    body = {"fn_index": handler["id"], "data": [junk] * len(handler["inputs"])}
                    session = str(handler["id"])
                    if "path" in json.dumps(junk) and handler["inputs"]:
                        route = "queue/join" if handler["queue"] else "run/predict"
                        refused = one.post(f"gradio_api/{route}", json={"session_hash": session, **body})
                        assert refused.status_code in (400, 403) and "uploaded file is gone" in refused.text
                        continue
                    if handler["queue"]:
                        said = json.dumps(ask(one, body, session))
                    else:
                        said = one.post("gradio_api/run/predict", json={"session_hash": session, **body}).text
                    assert "Traceback" not in said and "root:" not in said, (handler["api_name"], said)

        handlers = [each for each in config(asking)["dependencies"] if each["backend_fn"]]
        assert len(handlers) > 50
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, handlers))
        assert asking.get("config").status_code == 200
    assert sorted(str(path) for path in (home / "runs").rglob("*")) == before


def test_row_5_a_message_of_a_megabyte_is_refused(client: httpx.Client):
    send, values = as_it_opens(client, "send")
    values["box"] = "x" * 2**20
    ended = ask(client, {"fn_index": send["id"], "data": list(values.values())})
    assert not ended["success"] and "1,048,576 characters" in json.dumps(ended["output"]), ended


def as_it_opens(client: httpx.Client, name: str) -> tuple[dict, dict]:
    """A handler, and what the page sends to it when nothing was touched, by element."""
    page = config(client)
    handler = next(each for each in page["dependencies"] if each["api_name"] == name)
    components = {each["id"]: each for each in page["components"]}
    inputs = [components[number] for number in handler["inputs"]]
    return handler, {each["props"].get("elem_id") or each["id"]: each["props"].get("value") for each in inputs}


@given(
    st.integers(0, 5),
    st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 1e9, "x", None, [], True]), st.floats(max_value=-0.001)),
)  # fmt: skip
def test_row_6_sampling_is_bounded_on_the_server(place, bad):
    values = [64, 0.7, 0.9, 50, 0.0, 1.1]
    values[place] = bad
    try:
        sampling = read_sampling(*values, None, "")
    except StudioError:
        return
    assert all(
        math.isfinite(value) and 0 <= value <= 10_000 for value in vars(sampling).values() if isinstance(value, float)
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("r", "learning_rate", "max_steps", "batch_size")])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e12, -1, "x", None, [1]])
def test_row_6_settings_of_a_run_are_bounded_too(name, bad, engine):
    from studio.backend.training.queue import Jobs
    from studio.ui.finetune.handlers import FinetuneHandlers
    from studio.ui.finetune.run_draft import Draft

    handlers = FinetuneHandlers(engine, Jobs())
    draft = handlers.fresh()
    with pytest.raises(StudioError):
        handlers.start(Draft(settings=draft.settings | {name: bad}), handlers.ticket())


def test_row_7_polls_do_not_wait_in_the_queue(client: httpx.Client):
    page = config(client)
    loads = [each for each in page["dependencies"] if any(event == "load" for _, event in each["targets"])]
    assert loads and all(each["queue"] is False for each in loads)
    assert not [each for each in page["components"] if each["type"] == "timer"], "a timer takes a tenth of a core"


def test_row_11_run_does_not_skip_the_queue(client: httpx.Client):
    queued = [each for each in config(client)["dependencies"] if each["queue"] and each["api_name"]]
    assert len(queued) > 5
    for each in queued:
        for path in (
            f"gradio_api/run/{each['api_name']}",
            f"gradio_api/api/{each['api_name']}",
            "gradio_api/run/predict",
        ):
            answer = client.post(path, json={"data": [], "fn_index": each["id"], "session_hash": "r"})
            assert answer.status_code in (401, 403, 404), (path, answer.status_code, answer.text[:200])


def test_row_22_uploads_that_are_refused_or_left_leave_nothing(client: httpx.Client, url: str, home: Path):
    def kept() -> set[Path]:
        return {path for path in (home / "gradio").rglob("*") if path.is_file()}

    before = kept()
    many = client.post("gradio_api/upload", files=[("files", (f"{n}.txt", b"x" * 100_000)) for n in range(17)])
    assert many.status_code == 413 and "At most 16 files" in many.json()["detail"] and kept() == before
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port)) as half:
        half.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n--edge\r\n"
            b'Content-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + b"x" * 70_000
        )
        until(lambda: kept() > before)
        assert client.get("config").status_code == 200, "others are answered meanwhile"
    until(lambda: kept() == before)
    parts = [("files", (f"{n}", b"x")) for n in range(10_000)]
    many = client.post("gradio_api/upload", files=parts)
    assert many.status_code == 413 and "At most 16 files" in many.json()["detail"] and kept() == before


UNSAFE = {
    "B102": "exec(text)",
    "B301": "pickle.loads(text)",
    "B307": "eval(text)",
    "B506": "yaml.load(text)",
    "B602": "subprocess.run(text, shell=True)",
    "B605": "os.system(text)",
    "B608": "db.execute(f'SELECT * FROM runs WHERE id = {text}')",
    "B614": "torch.load(text)",
}


def test_row_25_the_linters_find_what_is_unsafe(tmp_path: Path):
    """Those that `make lint` runs, with the settings that it takes, in a file where there is one of each."""
    lint = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "ruff check ." in lint and "bandit --quiet --configfile pyproject.toml --recursive jetmoe studio" in lint
    file = tmp_path / "unsafe.py"
    lines = "\n".join(f"    {line}" for line in UNSAFE.values())
    file.write_text(f"import os, pickle, subprocess, torch, yaml\ndef unsafe(text, db):\n{lines}\n")
    found = linted("bandit", "--quiet", "--configfile", "pyproject.toml", "--format", "json", file)["results"]
    assert UNSAFE.keys() <= {each["test_id"] for each in found}
    found = linted("ruff", "check", "--config", "pyproject.toml", "--output-format", "json", file)
    assert {"S102", "S301", "S307", "S506", "S602", "S605", "S608"} <= {each["code"] for each in found}


def linted(*command: str | Path) -> Any:
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return json.loads(ended.stdout)


PRIVATE_FILES = ["/etc/passwd", "README.md", "app.py", ".env", "../app.py", "/proc/self/environ", "studio/../app.py"]
PRIVATE_URLS = ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:22", "http://10.0.0.1/", "file:///etc/passwd",
                "http://localhost/", "http://[::1]/", "http://example.org/"]  # fmt: skip


@pytest.mark.parametrize("wanted", PRIVATE_FILES + PRIVATE_URLS + ["//evil.example/x", r"\\evil.example\x"])
def test_row_26_no_file_and_no_address_is_served(client: httpx.Client, wanted: str):
    for way in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "gradio_api/proxy="):
        answer = client.get(way + wanted, follow_redirects=False)
        assert answer.status_code in (400, 403, 404), (way, answer.status_code, answer.text[:100])


def test_row_26_what_is_beside_the_caches_is_not_served(client: httpx.Client, home: Path):
    (home / "runs").mkdir(exist_ok=True)
    (home / "runs" / "secret.txt").write_text("canary")
    for path in (home / "runs" / "secret.txt", home / "gradio" / ".." / "runs" / "secret.txt", home / "none.txt"):
        answer = client.get(f"gradio_api/file={path}")
        assert answer.status_code in (403, 404) and "canary" not in answer.text
    there, gone = (client.get(f"gradio_api/file={home / name}") for name in ("runs/secret.txt", "none.txt"))
    assert there.status_code == gone.status_code, "whether a file exists must not be told"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"]
)
def test_row_26_other_websites_get_nothing(client: httpx.Client, origin: str):
    for method, path in (("GET", "config"), ("POST", "gradio_api/queue/join"), ("POST", "gradio_api/upload")):
        assert client.request(method, path, headers={"Origin": origin}).status_code == 403
    if "127" not in origin:
        assert "access-control-allow-origin" not in client.get("config", headers={"Origin": origin}).headers


def test_row_26_a_name_of_an_uploaded_file_is_no_path(client: httpx.Client, home: Path):
    sent = client.post("gradio_api/upload", files=[("files", ("../../../evil.sh", b"x"))])
    kept = Path(sent.json()[0])
    assert kept.name == "evil.sh" and kept.is_relative_to(home / "gradio")
    assert client.get(f"gradio_api/file={kept}").headers["content-disposition"].startswith("attachment")


ODD_NAMES = ["../../x", r"..\..\x", "C:\\x", "/etc/x", "a\0b", "x" * 10_000, "CON", "nul.csv", "..", ".", " ", "x\r\ny",
             "\u202excod.exe", "-rf", "~root", "a;b|c`d`$(e)"]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_row_26_an_odd_name_is_a_file_here_or_a_sentence(client: httpx.Client, home: Path, name: str):
    sent = client.post("gradio_api/upload", files=[("files", (name, b"x"))])
    if sent.status_code == 200:
        assert all(Path(kept).resolve().is_relative_to(home / "gradio") for kept in sent.json())
        assert all(len(Path(kept).name) <= 255 and Path(kept).read_bytes() == b"x" for kept in sent.json())
    else:
        assert 400 <= sent.status_code < 500 and "Traceback" not in sent.text


def test_row_26_a_file_input_takes_no_path_and_no_address(client: httpx.Client):
    take, values = as_it_opens(client, "upload")
    name = next(name for name in values if name == "adapter-upload")
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0)
        here = f"http://127.0.0.1:{inside.getsockname()[1]}/x"
        addresses = ["http://169.254.169.254/x", "http://127.0.0.1:22/x", "http://10.0.0.1/x", "file:///etc/passwd"]
        for number, path in enumerate(["/etc/passwd", *addresses, here]):
            values[name] = [{"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}]
            ended = ask(client, {"fn_index": take["id"], "data": list(values.values())}, session=f"file{number}")
            assert not ended["success"] and "root:" not in json.dumps(ended)
        with pytest.raises(BlockingIOError):
            inside.accept()


def test_row_26_what_is_refused_has_a_line_in_the_log(client: httpx.Client, caplog: pytest.LogCaptureFixture):
    foreign = client.post("gradio_api/upload", headers={"Origin": "null"})
    large = client.post("gradio_api/queue/join", content=b"x" * (9 << 20))
    assert [foreign.status_code, large.status_code] == [403, 413]
    for answer in (foreign, large):
        assert answer.json()["detail"].endswith(".")
        assert f"request {answer.headers['x-request-id']} was refused ({answer.status_code})" in caplog.text


def test_row_30_headers_are_on_every_answer(client: httpx.Client):
    for path in ("/", "/config", "/nothing", "/exports/x/y.zip", "/theme.css"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"].endswith("frame-ancestors 'self'")


def test_row_31_nothing_is_monitored_or_recorded(client: httpx.Client):
    for path in (
        "/monitoring",
        "/monitoring/summary",
        "/monitoring/x",
        "/gradio_api/runs",
        "/gradio_api/profiling/summary",
    ):
        assert client.get(path).status_code in (403, 404), path
    assert "runs" not in config(client)["footer_links"]


def test_row_46_the_tools_are_the_api(client: httpx.Client):
    assert [tool["name"] for tool in client.get("/gradio_api/mcp/schema").json()] == [*API]


# --- with a login

PRIVATE = ["/config", "/gradio_api/info", "/gradio_api/heartbeat/x", "/gradio_api/queue/data?session_hash=x",
           f"/exports/{'0' * 36}/adapter.zip", "/labelled/" + "0" * 32 + ".csv", "/gradio_api/file=/etc/passwd",
           "/openapi.json", "/gradio_api/startup-events/x", "/gradio_api/token"]  # fmt: skip


def test_nothing_is_answered_before_a_login(guarded: str):
    with httpx.Client(base_url=guarded, timeout=30) as asking:
        assert {asking.get(path).status_code for path in PRIVATE} == {401}
        for path in (
            "component_server",
            "cancel",
            "upload",
            "queue/join",
            "run/predict",
            "stream/x",
            "reset",
            "vibe-edit",
        ):
            assert asking.post(f"/gradio_api/{path}", json={}).status_code == 401, path
        assert asking.get("/").status_code == 200 and "dependencies&quot;:[{" not in asking.get("/").text
        forged = {f"access-token-unsecure-{name}": "x" for name in ("", "x")}
        assert asking.get("/config", cookies=forged).status_code == 401


def test_who_logs_in_is_answered_until_removed(guarded: str, users: Path):
    from studio.backend.hosting.accounts import Accounts

    with httpx.Client(base_url=guarded, timeout=30) as asking:
        assert asking.post("/login", data={"username": NAME, "password": "wrong"}).status_code == 400
        Accounts(users).add("bob", PASSWORD)
        assert asking.post("/login", data={"username": "bob", "password": PASSWORD}).json() == {"success": True}
        assert asking.get("/config").status_code == 200
        assert "There is no such export" in asking.get(PRIVATE[4]).text
        Accounts(users).remove("bob")
        assert asking.get("/config").status_code == 401
        Accounts(users).add("bob", PASSWORD)
        assert asking.get("/config").status_code == 401, "another Bob, perhaps"


def test_a_changed_password_ends_what_was_opened_with_the_old_one(guarded: str, users: Path):
    from studio.backend.hosting.accounts import Accounts

    Accounts(users).add("eve", PASSWORD)
    with httpx.Client(base_url=guarded, timeout=30) as asking, httpx.Client(base_url=guarded, timeout=30) as other:
        assert asking.post("/login", data={"username": "eve", "password": PASSWORD}).status_code == 200
        assert other.post("/login", data={"username": NAME, "password": PASSWORD}).status_code == 200
        assert asking.get("/config").status_code == 200
        Accounts(users).add("eve", PASSWORD * 2)
        assert asking.get("/").status_code == 200 and "dependencies&quot;:[{" not in asking.get("/").text
        assert asking.get("/config").status_code == 401 and other.get("/config").status_code == 200
        assert asking.post("/login", data={"username": "eve", "password": PASSWORD * 2}).status_code == 200
        assert asking.get("/config").status_code == 200


def test_behind_https_the_cookie_is_secure(guarded: str):
    with httpx.Client(base_url=guarded, timeout=30) as asking:
        plain = asking.get("/").headers.get_list("set-cookie")
    with httpx.Client(base_url=guarded, timeout=30, headers={"X-Forwarded-Proto": "http, https"}) as asking:
        secure = asking.get("/").headers.get_list("set-cookie")
    assert [[each.endswith("Secure") for each in cookies] for cookies in (plain, secure)] == [[False], [True]]


def test_logins_are_slowed_by_the_address_that_the_proxy_saw(guarded: str):
    def tries(address: str) -> list[int]:
        with httpx.Client(base_url=guarded, timeout=60, headers={"X-Forwarded-For": f"1.2.3.4, {address}"}) as asking:
            return [asking.post("/login", data={"username": "x", "password": "y"}).status_code for _ in range(13)]

    first = tries("198.51.100.7")
    assert first[:10] == [400] * 10 and 429 in first[10:]
    assert tries("198.51.100.8")[0] == 400


def test_row_32_who_asks_too_much_is_refused_politely(guarded: str):
    """Last, and as another visitor, so that no other test is refused."""
    body = {"fn_index": 0, "data": [], "session_hash": "many"}
    with httpx.Client(base_url=guarded, timeout=30, headers={"X-Forwarded-For": "198.51.100.9"}) as asking:
        answers = [asking.post("/gradio_api/queue/join", json=body) for _ in range(200)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1 and "Wait a moment" in refused.json()["detail"]


def test_row_10_a_full_queue_is_said_and_the_page_lives(guarded: str):
    with httpx.Client(base_url=guarded, timeout=30, headers={"X-Forwarded-For": "198.51.100.10"}) as asking:
        assert asking.post("/login", data={"username": NAME, "password": PASSWORD}).status_code == 200
        send, values = as_it_opens(asking, "send")
        values |= {"box": "Hello", "set-max_new_tokens": 64}
        answers = []
        for number in range(60):
            asking.headers["X-Forwarded-For"] = f"198.51.100.{100 + number}"
            body = {"fn_index": send["id"], "data": list(values.values()), "session_hash": f"full{number}"}
            answers.append(asking.post("/gradio_api/queue/join", json=body))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused and {answer.status_code for answer in refused} == {503}
        assert "in the queue already" in refused[0].text  # `test_fair_queue.py` has many visitors
        assert asking.get("/config").status_code == 200
