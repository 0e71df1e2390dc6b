"""Who asks: addresses behind proxies, and requests of other websites."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.backend.hosting.exposure import Exposure
from studio.ui.server.visitors import Forwarded, SameOrigin

LOCAL = "http://127.0.0.1:7860"


def client(exposure: Exposure, base: str = LOCAL) -> TestClient:
    async def seen(request):
        names = [name for name in request.headers if name.startswith(("x-f", "x-r", "forw"))]
        return JSONResponse([request.client.host, names])

    middleware = [Middleware(Forwarded, exposure=exposure), Middleware(SameOrigin, exposure=exposure)]
    app = Starlette(routes=[Route("/", seen, methods=["GET", "POST"])], middleware=middleware)
    return TestClient(app, base_url=base, client=("10.0.0.9", 1))


def test_forwarded_headers_of_nobody_are_believed():
    headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "evil.example", "X-Real-IP": "192.0.2.1",
               "Forwarded": "for=192.0.2.1"}  # fmt: skip
    assert client(Exposure()).get("/", headers=headers).json() == ["10.0.0.9", []]


@pytest.mark.parametrize(
    ("forwarded", "proxy", "space"),
    [
        ("192.0.2.1", "192.0.2.1", "10.0.0.9"),  # of documentation, which counts as private
        ("8.8.8.8", "8.8.8.8", "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8", "8.8.8.8", "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8, 10.1.2.3", "10.1.2.3", "8.8.8.8"),
        ("2001:4860::8888", "2001:4860::8888", "2001:4860::8888"),
        ("8.8.8.8, nonsense", "10.0.0.9", "10.0.0.9"),
        ("", "10.0.0.9", "10.0.0.9"),
    ],
)
def test_the_nearest_proxy_is_believed(forwarded, proxy, space):
    headers = {"X-Forwarded-For": forwarded}
    assert client(Exposure(proxy=True)).get("/", headers=headers).json()[0] == proxy
    assert client(Exposure(space=True)).get("/", headers=headers).json()[0] == space


@pytest.mark.parametrize(
    ("said", "proxy", "nobody"),
    [("https", "https", "http"), ("http, https", "https", "http"), ("https, http", "http", "http"),
     ("javascript", "http", "http"), ("", "http", "http")],
)  # fmt: skip
def test_https_is_what_the_nearest_proxy_says(said, proxy, nobody):
    async def scheme(request):
        return JSONResponse(request.url.scheme)

    def seen(exposure: Exposure) -> str:
        app = Starlette(routes=[Route("/", scheme)], middleware=[Middleware(Forwarded, exposure=exposure)])
        return TestClient(app, base_url=LOCAL).get("/", headers={"X-Forwarded-Proto": said}).json()

    assert [seen(Exposure(proxy=True)), seen(Exposure())] == [proxy, nobody]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://127.0.0.1:1", "http://[", "file://"])
def test_other_websites_are_refused(origin):
    refused = client(Exposure()).post("/", headers={"Origin": origin})
    assert refused.status_code == 403 and "own page" in refused.json()["detail"]


def test_the_page_itself_is_answered():
    assert client(Exposure()).post("/", headers={"Origin": LOCAL}).status_code == 200
    assert client(Exposure()).post("/").status_code == 200
    team = client(Exposure("0.0.0.0", public=True), "http://studio.example:7860")
    assert team.post("/", headers={"Origin": "http://studio.example:7860"}).status_code == 200
    assert team.post("/", headers={"Origin": "http://evil.example:7860"}).status_code == 403


def test_a_proxy_may_change_the_host():
    proxy, headers = client(Exposure(proxy=True)), {"Origin": "https://studio.example"}
    assert proxy.post("/", headers=headers).status_code == 403
    assert proxy.post("/", headers=headers | {"X-Forwarded-Host": "studio.example"}).status_code == 200
    assert client(Exposure()).post("/", headers=headers | {"X-Forwarded-Host": "studio.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:7860", 200), ("localhost:7860", 200), ("[::1]:7860", 200), ("10.0.0.1", 200), ("a.localhost", 200),
     ("evil.example:7860", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[", 403)],
)  # fmt: skip
def test_on_this_machine_names_of_others_are_refused(host, status):
    """Such as one that a website makes its own and then points to this machine."""
    assert client(Exposure()).get("/", headers={"Host": host}).status_code == status
