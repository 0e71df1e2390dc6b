"""The page: a header and the tabs registered by the folders of `studio/ui`.

demo = build(engine, jobs)
demo.launch(**launch_settings(engine, jobs))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.routing import Route

from studio.backend.hosting import demo
from studio.backend.hosting.exposure import Exposure
from studio.backend.runs.store import RunStore
from studio.backend.runs.views import RunViews
from studio.registry import discover
from studio.ui.common import downloads
from studio.ui.common.listeners import AT_ONCE
from studio.ui.page import glossary, status
from studio.ui.page.account_merge import account_merger
from studio.ui.page.api import add_api
from studio.ui.page.blocks import Blocks
from studio.ui.page.theme import css, theme
from studio.ui.server import run_routes, scripts, sign_in
from studio.ui.server.headers import SafeHeaders
from studio.ui.server.identity import Identity, secret, serves_several
from studio.ui.server.limits import DEMO_SHARE, RATES, SHARE, SPACE_RATES, UPLOAD_BYTES, Bodies, Rates, Turns
from studio.ui.server.login import login_of
from studio.ui.server.own_sessions import OwnSessions
from studio.ui.server.request_ids import RequestIds
from studio.ui.server.visitors import Forwarded, RequireLogin, SameOrigin

if TYPE_CHECKING:
    from studio.backend.chat.engine import Engine
    from studio.backend.training.queue import Jobs

TITLE = "JetMoE Studio"
STORAGE = Path(__file__).with_name("storage.js")
ADDRESSES = {"run": "finetune", "compare": "finetune", "classifier": "classify"}
"""Query parameters of the page's URL, and the tabs they open."""
HEADER = """<header class="masthead"><svg viewBox="0 0 40 40" aria-hidden="true"><g fill="none" stroke="currentColor"
stroke-width="1.5" opacity=".35"><path d="M8 20 L20 8 L32 8 M8 20 L20 16 L32 16 M8 20 L20 24 L32 24 M8 20 L20 32 L32 32"
/></g><circle cx="8" cy="20" r="4" fill="currentColor"/><circle cx="20" cy="8" r="3.4" fill="var(--u0)"/><circle cx="20"
cy="16" r="3.4" fill="var(--u1)"/><circle cx="20" cy="24" r="3.4" fill="var(--u2)"/><circle cx="20" cy="32" r="3.4"
fill="var(--u3)"/></svg><div><h1>JetMoE Studio</h1>
<p>Chat with a mixture-of-experts model, fine-tune it and inspect its routing.
<a href="glossary" target="_blank" rel="noopener">Glossary</a></p></div></header>"""


def build(engine: Engine, jobs: Jobs) -> gr.Blocks:
    """Return the page for an engine and a training queue.

    All events are private except those of the API; only polls bypass Gradio's queue.
    """
    tabs = discover("studio.ui", "TAB", module="tab")
    with Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        add_api(engine)  # first, because a later listener of the same name gets another one
        _masthead(engine, jobs)
        # Created outside the tabs, because Gradio renders the contents of a tab only when it is opened.
        kept = {tab.id: tab.keep() for tab in tabs}
        with gr.Tabs(elem_id="tabs") as shown:
            for tab in tabs:
                with gr.Tab(tab.title, id=tab.id):
                    tab.build(engine, jobs, kept[tab.id])
        page.load(_asked_for, None, shown, **AT_ONCE)
    for event in page.fns.values():
        if event.api_name == "_check_login_status":  # of gr.LoginButton, which does not hide it
            event.api_visibility = "private"
    return page.queue(api_open=False, max_size=32)


def _asked_for(request: gr.Request) -> Any:
    """Select the tab of the run or classifier named in the URL."""
    asked = [tab for name, tab in ADDRESSES.items() if request.query_params.get(name)]
    return gr.Tabs(selected=asked[0]) if asked else gr.skip()


def _masthead(engine: Engine, jobs: Jobs) -> None:
    with gr.Row(elem_id="masthead"):
        gr.HTML(HEADER, js_on_load=None)
        line = status.StatusLine()
        gr.HTML(js_on_load=scripts.mounting("page/theme_toggle.js"), elem_id="theme")
        if sign_in.offered():
            gr.LoginButton(logout_value="Sign out ({})", size="sm", elem_id="sign-in")
    line.add_actions(engine, jobs)
    if demo.space_id():
        gr.HTML(js_on_load=scripts.mounting("page/own_tab.js"), elem_id="own-tab")
    if note := status.demo_note():
        gr.HTML(note, elem_id="demo", js_on_load=None)


def launch_settings(engine: Engine, jobs: Jobs, exposure: Exposure | None = None) -> dict[str, Any]:
    """Return safe options for `Blocks.launch`: no sharing, monitoring or file serving.

    Args:
        exposure: who can reach the page; by default only this machine.

    Raises:
        StudioError: the key that signs visitor cookies can't be read or created.
    """
    exposure = exposure or Exposure()
    accounts = exposure.accounts()
    return {
        "theme": theme(),
        "css": css(),
        "head": f"<script>{STORAGE.read_text(encoding='utf-8')}</script>",
        "auth": login_of(accounts) if accounts else None,
        "share": False,
        "show_error": False,
        "enable_monitoring": False,
        "run_history": False,
        "strict_cors": True,
        "ssr_mode": False,
        "pwa": False,
        # Its calls come from this machine, without the login of whoever made them.
        "mcp_server": accounts is None,
        "max_file_size": UPLOAD_BYTES,
        "footer_links": ["api", "settings"],
        "app_kwargs": {"middleware": _middleware(exposure, jobs.store), "routes": _routes(engine, jobs)},
    }


def _routes(engine: Engine, jobs: Jobs) -> list[Route]:
    # A short timeout, so that pages don't wait long for a locked database.
    views = RunViews(RunStore(jobs.store.home, busy_s=1.0))
    return [
        *downloads.routes(jobs.store),
        *run_routes.routes(views),
        *status.routes(engine, jobs),
        *glossary.routes(),
        *scripts.routes(),
    ]


def _middleware(exposure: Exposure, store: RunStore) -> list[Middleware]:
    """Return the middleware in the order in which requests pass through it."""
    accounts = exposure.accounts()
    guarded = accounts is not None or not exposure.space  # a Space's API answers other websites, as every Space's does
    # A frame of any website may hold a Space, unless the page in it could act with the visitor's account.
    anywhere = exposure.space and accounts is None and not sign_in.offered()
    several, limits = serves_several(exposure), demo.limits()
    share = (DEMO_SHARE if limits else SHARE) if several else None
    return [
        Middleware(RequestIds),
        Middleware(SafeHeaders, space=exposure.space, anywhere=anywhere),
        Middleware(Forwarded, exposure=exposure),
        *([Middleware(SameOrigin, exposure=exposure)] if guarded else []),
        Middleware(Rates, rates=SPACE_RATES if exposure.space else RATES),
        *([Middleware(Turns)] if several else []),
        *([Middleware(RequireLogin, accounts=accounts)] if accounts else []),
        Middleware(Identity, secret=secret(store.home) if several else None, merge=account_merger(store)),
        Middleware(
            Bodies,
            folder=Path(get_upload_folder()),
            data_bytes=limits.file_bytes if limits else None,
            share=share,
            upload_bytes=limits.uploads_bytes if limits else UPLOAD_BYTES,
        ),
        Middleware(OwnSessions),
    ]
