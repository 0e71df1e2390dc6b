"""The glossary: every term has an anchor, and every link leads to one."""

import re

from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio.ui.page import glossary
from studio.ui.page.layout import HEADER


def test_every_link_of_the_glossary_leads_to_a_term():
    answer = TestClient(Starlette(routes=glossary.routes())).get("/glossary")
    ids, links = re.findall(r'id="([^"]+)"', answer.text), re.findall(r'href="([^"]+)"', answer.text)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert len(ids) == len(set(ids)) > 20 and {"router", "gate", "moa-attention-experts", "entropy"} <= {*ids}
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)


def test_the_page_links_to_the_glossary():
    assert 'href="glossary"' in HEADER and 'rel="noopener"' in HEADER
