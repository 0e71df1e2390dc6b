"""Another precision, picked on the page: the model is loaded anew, says what it takes, and answers."""

import re

from playwright.sync_api import expect

from jetmoe.nf4 import cpu as nf4_cpu
from tests.e2e.studio_page import StudioPage, choose

# Where tiles can't be multiplied, what is not in 4 bits is in 32.
GIB = r"0\.2\d" if nf4_cpu.supported() else r"0\.3\d"


def choose_precision(studio: StudioPage, name: str) -> None:
    studio._advanced()
    choose(studio.page, "precision", name, exact=True)


def test_4_bits_on_the_page(starter_page: StudioPage):
    studio = starter_page
    status = studio.page.locator(".status-ready")
    expect(status).to_contain_text(re.compile(r"Weights \d\.\d\d GiB"))
    try:
        choose_precision(studio, "4-bit (NF4)")
        expect(status).to_contain_text("in nf4 on the CPU", timeout=120_000)
        expect(status).to_contain_text(re.compile(rf"Weights {GIB} GiB.* 9\d % of parameters in 4-bit"))
        studio.set_length(12)
        assert len(studio.ask_and_wait("What is the capital of France?")) > 10
        assert studio.shown_tokens() > 12
    finally:
        choose_precision(studio, "Automatic")
        expect(status).not_to_contain_text("nf4", timeout=120_000)
