"""Whose a request is: cookies that can't be forged, the key that signs them, and who counts as several people."""

import hmac
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import gradio as gr
import httpx
import pytest
from gradio import oauth
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.backend.hosting.exposure import Exposure
from studio.errors import StudioError
from studio.ui.server import sign_in
from studio.ui.server.cookies import DAY_S, KEPT_DAYS, RENEWED_DAYS, Visitors
from studio.ui.server.identity import Identity, owner_of, secret, serves_several
from tests.builders.ports import free_port

KEY = b"k" * 32
VISITOR = "0" * 32


@pytest.fixture(autouse=True)
def nowhere_special(monkeypatch):
    for name in ("SPACE_ID", "STUDIO_DEMO", "SYSTEM"):
        monkeypatch.delenv(name, raising=False)


def client(key: bytes | None = KEY, **state) -> TestClient:
    """A server that says whose the request is."""
    routes = [
        Route("/", lambda request: HTMLResponse(owner_of(request))),
        Route("/ask", lambda request: PlainTextResponse(owner_of(request)), methods=["GET", "POST"]),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Identity, secret=key)])
    for name, value in state.items():
        setattr(app, name, value)
    return TestClient(app)


# --- cookies


def test_a_browser_is_known_again_and_another_is_somebody_else():
    first, second = client(), client()
    owner = first.get("/").text
    assert owner.startswith("anon:") and len(owner) == 37
    assert first.get("/").text == first.post("/ask").text == owner != second.get("/").text
    assert "set-cookie" not in first.get("/").headers, "it is set once"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites():
    response = client().get("/")
    cookie = response.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Lax" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert response.headers["cache-control"] == "no-store"
    assert "SameSite=Lax; Secure" in Visitors(KEY).recognise({}, https=True)[1]


def test_on_a_space_the_cookie_works_in_a_frame(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/studio")
    assert Visitors(KEY).recognise({})[1].endswith("; HttpOnly; SameSite=None; Secure; Partitioned")


def test_what_a_cache_may_give_to_others_sets_no_cookie():
    assert "set-cookie" not in client().get("/ask").headers and "set-cookie" in client().post("/ask").headers


def signed(visitors: Visitors, age_s: float = 0) -> str:
    with patch.object(TimestampSigner, "get_timestamp", return_value=int(time.time() - age_s)):
        return visitors.sign(VISITOR)


def signed_by_0_1(key: bytes = KEY, age_s: float = 0) -> str:
    text = f"{VISITOR}.{int(time.time() - age_s)}"
    return f"{text}.{hmac.new(key, f'visitor {text}'.encode(), 'sha256').hexdigest()}"


def forged() -> dict[str, str]:
    visitors = Visitors(KEY)
    good = signed(visitors)
    _, made, mac = good.split(".")
    return {
        "of another key": Visitors(b"x" * 32).sign(VISITOR),
        "of another visitor": f"{'1' * 32}.{made}.{mac}",
        "made later": f"{VISITOR}.{signed(visitors, -60).split('.')[1]}.{mac}",
        "without a signature": f"{VISITOR}.{made}.",
        "cut": good[:-1],
        "longer": good + "0",
        "too old": signed(visitors, KEPT_DAYS * DAY_S + 60),
        "nothing": "",
        "dots": "...",
        "not ASCII": f"{VISITOR}.{made}.{'é' * 64}",
        "other digits": f"{VISITOR}.{'٣' * 10}.{mac}",
        "of version 0.1 and another key": signed_by_0_1(b"x" * 32),
        "of version 0.1, too old": signed_by_0_1(KEY, KEPT_DAYS * DAY_S + 60),
        "of version 0.1, without a signature": signed_by_0_1().rsplit(".", 1)[0] + ".",
    }


@pytest.mark.parametrize("kind", [*forged()])
def test_a_forged_or_expired_cookie_is_replaced(kind):
    visitors = Visitors(KEY)
    owner, cookie = visitors.recognise({visitors.name: forged()[kind]})
    assert owner != f"anon:{VISITOR}" and owner.startswith("anon:")
    assert visitors.recognise({visitors.name: cookie.split(";")[0].split("=")[1]}) == (owner, "")


def test_a_cookie_is_renewed_for_who_comes_back():
    visitors = Visitors(KEY)
    good = {visitors.name: visitors.sign(VISITOR)}
    assert visitors.recognise(good) == (f"anon:{VISITOR}", "")
    old = {visitors.name: signed(visitors, RENEWED_DAYS * DAY_S + 60)}
    owner, cookie = visitors.recognise(old)
    assert owner == f"anon:{VISITOR}" and cookie.startswith(f"{visitors.name}={VISITOR}.")


def test_a_cookie_behind_https_is_bound_to_this_host():
    visitors = Visitors(KEY)
    owner, cookie = visitors.recognise({visitors.name: visitors.sign(VISITOR)}, https=True)
    assert owner == f"anon:{VISITOR}" and cookie.startswith(f"__Host-{visitors.name}={VISITOR}.")
    assert "; Secure" in cookie and "; Path=/;" in cookie and "Domain" not in cookie
    # Another site below the same domain can set the plain one only.
    both = {visitors.secure_name: visitors.sign(VISITOR), visitors.name: visitors.sign("0" * 32)}
    assert visitors.recognise(both, https=True) == (f"anon:{VISITOR}", "")


def test_a_cookie_of_version_0_1_is_valid_and_renewed():
    visitors = Visitors(KEY)
    assert visitors.known({visitors.name: signed_by_0_1()}) == f"anon:{VISITOR}"
    owner, cookie = visitors.recognise({visitors.name: signed_by_0_1()})
    assert owner == f"anon:{VISITOR}"
    assert visitors.recognise({visitors.name: cookie.split(";")[0].split("=", 1)[1]}) == (owner, "")


def test_two_studios_on_one_host_leave_each_other_alone():
    assert Visitors(KEY).name != Visitors(b"x" * 32).name


# --- logins, and one person


def test_a_login_is_the_owner_on_any_browser():
    state = {"tokens": {"t0ken": "ada"}, "cookie_id": "c"}
    by_login = client(**state)
    by_login.cookies.set("access-token-unsecure-c", "t0ken")
    assert by_login.get("/").text == "user:ada"
    by_login.cookies.set("access-token-unsecure-c", "another")
    assert by_login.get("/").text.startswith("anon:")


def test_the_login_of_gradio_is_known_everywhere():
    """Also where Gradio tells no name: it stands in the application that Gradio makes."""
    route = Route("/who", lambda request: PlainTextResponse(owner_of(request)))
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("Hello")
    _, url, _ = page.launch(
        server_port=free_port(), prevent_thread_lock=True, quiet=True, ssr_mode=False, auth=("ada", "s3cret"),
        app_kwargs={"middleware": [Middleware(Identity, secret=KEY)], "routes": [route]},
    )  # fmt: skip
    try:
        with httpx.Client(base_url=url) as http:
            assert http.get("/who").text.startswith("anon:")
            assert http.post("/login", data={"username": "ada", "password": "s3cret"}).is_success
            assert http.get("/who").text == "user:ada"
            http.get("/logout", follow_redirects=True)
            assert http.get("/who").text.startswith("anon:")
    finally:
        page.close()


@pytest.mark.parametrize(("system", "age", "owner"), [("spaces", 60, "hf:ada"), ("spaces", -60, ""), ("", 60, "")])
def test_a_sign_in_counts_only_on_a_space(monkeypatch, system, age, owner):
    """Elsewhere Gradio plays it, signed with a key that everybody knows."""
    monkeypatch.setenv("SYSTEM", system)
    monkeypatch.setenv("SPACE_ID", "somebody/studio")
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(oauth, name, "s")
    info = {"userinfo": {"preferred_username": "ada"}, "expires_at": time.time() + age}

    class Session:
        def __init__(self, app) -> None:
            self.app = app

        async def __call__(self, scope, receive, send) -> None:
            await self.app(scope | {"session": {"oauth_info": info}}, receive, send)

    routes = [Route("/", lambda request: PlainTextResponse(owner_of(request)))]
    app = Starlette(routes=routes, middleware=[Middleware(Session), Middleware(Identity, secret=KEY)])
    told = TestClient(app).get("/").text
    assert told == owner if owner else told.startswith("anon:")


@pytest.mark.parametrize("works", [True, False])
def test_a_browser_is_forgotten_only_once_its_things_are_the_accounts(monkeypatch, works):
    """Where they can't be moved, the page is there nevertheless, and the next one tries again."""
    monkeypatch.setattr(sign_in, "owner_by", lambda scope: "hf:ada")
    moved = []

    def move(before: str, after: str) -> None:
        moved.append((before, after))
        if not works:
            raise StudioError("The disk is full.")

    routes = [Route("/", lambda request: HTMLResponse(owner_of(request)))]
    app = Starlette(routes=routes, middleware=[Middleware(Identity, secret=KEY, merge=move)])
    visitors = Visitors(KEY)
    with_cookie = TestClient(app, cookies={visitors.name: visitors.sign(VISITOR)})
    answer = with_cookie.get("/")
    assert answer.text == "hf:ada" and moved == [(f"anon:{VISITOR}", "hf:ada")]
    assert (f"{visitors.name}=;" in answer.headers.get("set-cookie", "")) == works
    TestClient(app, cookies={visitors.name: Visitors(b"x" * 32).sign(VISITOR)}).get("/")
    assert len(moved) == 1, "a forged cookie is nobody's"


def test_one_person_is_the_owner_of_everything_and_gets_no_cookie():
    response = client(None).get("/")
    assert response.text == "" and "set-cookie" not in response.headers


def test_a_request_that_no_middleware_has_seen_is_nobodys():
    for request in (gr.Request(), gr.Request(SimpleNamespace(state=SimpleNamespace()))):
        with pytest.raises(AttributeError):
            owner_of(request)


def test_one_person_is_who_alone_reaches_it():
    assert not serves_several(Exposure()) and not serves_several(Exposure("localhost"))


@pytest.mark.parametrize(
    "exposure",
    [Exposure("0.0.0.0"), Exposure(public=True), Exposure(auth=Path("users.txt")), Exposure(proxy=True),
     Exposure(space=True)],
    ids=["others reach it", "public", "login", "proxy", "Space"],
)  # fmt: skip
def test_several_people_are_whoever_can_reach_it(exposure):
    assert serves_several(exposure)


def test_a_demo_serves_several(monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    assert serves_several(Exposure())


# --- the key


def test_the_key_is_made_once_and_read_by_its_owner_only(tmp_path):
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        keys = {*pool.map(lambda _: secret(home), range(16))}
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert stat.S_IMODE((home / "secret").stat().st_mode) == 0o600
    assert not [*home.glob("*.part")] and secret(home) != secret(tmp_path / "other")


def test_a_damaged_key_is_said_so(tmp_path):
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(StudioError, match="Delete it"):
        secret(tmp_path)
