"""Headers of every response, and what is corrected in those of Gradio's login."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.ui.server.headers import SafeHeaders


async def login(request: Request) -> Response:
    """As Gradio's."""
    response = Response()
    response.set_cookie("access-token-x", "secret", httponly=True, samesite="none", secure=True)
    response.set_cookie("access-token-unsecure-x", "secret", httponly=True)
    response.set_cookie("other", "value", samesite="none", secure=True)
    return response


async def logout(request: Request) -> Response:
    return RedirectResponse(request.url_for("login"))


def client(scheme: str = "http", **options: bool) -> TestClient:
    routes = [Route("/login", login, name="login"), Route("/logout", logout)]
    app = Starlette(routes=routes, middleware=[Middleware(SafeHeaders, **options)])
    return TestClient(app, base_url=f"{scheme}://studio.example", follow_redirects=False)


def cookies(scheme: str) -> dict[str, str]:
    return {each.split("=")[0]: each for each in client(scheme).get("/login").headers.get_list("set-cookie")}


def test_a_login_behind_https_has_no_cookie_for_http():
    found = cookies("https")
    assert found.keys() == {"access-token-x", "other"}
    assert "SameSite=lax" in found["access-token-x"] and "SameSite=none" in found["other"]
    assert cookies("http").keys() == {"access-token-x", "access-token-unsecure-x", "other"}


def test_https_is_kept_where_it_is_used():
    assert "max-age" in client("https").get("/login").headers["strict-transport-security"]
    assert "strict-transport-security" not in client("http").get("/login").headers


def test_a_logout_leads_to_this_page_whatever_the_host_header_says():
    assert client().get("/logout", headers={"Host": "evil.example"}).headers["location"] == "/"


@pytest.mark.parametrize(
    ("options", "frames"),
    [({}, "frame-ancestors 'self'"), ({"space": True}, "https://*.hf.space"), ({"anywhere": True}, "base-uri 'self'")],
)
def test_only_a_space_is_framed_by_other_sites(options, frames):
    assert client(**options).get("/login").headers["content-security-policy"].endswith(frames)
