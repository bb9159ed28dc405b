"""The built site in a real browser, without a network: nothing is loaded from elsewhere, and the search works.

It needs `pip install -e '.[docs,browser]'` and chromium. Run it with `pytest -n0 -m slow`.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.helpers.command_line import ROOT, environment

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed"),
]

PAGES = (
    "index.html",
    "concepts.html",
    "losses.html",
    "reference/kdkit.losses.html",
    "examples/hinton.py.html",
    "404.html",
)


@pytest.fixture(scope="module")
def site():
    """The folder of the site, which is built from these files."""
    result = subprocess.run(
        [sys.executable, "-m", "tools.website"],
        cwd=ROOT,
        env=environment(PYTHONPATH=os.environ.get("PYTHONPATH", "")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return ROOT / "build" / "site"


@pytest.fixture(params=[(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light")], ids=["wide", "dark", "phone"])
def tab(request, browser):
    """A tab of one size and colour scheme, with lists of requests to the network and of errors in the console."""
    width, height, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.requested, page.errors = [], []
    page.on("request", lambda call: page.requested.append(call.url))
    page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_the_network_and_fits_the_screen(name, site, tab):
    tab.goto((site / name).as_uri())
    tab.wait_for_timeout(200)
    assert [url for url in tab.requested if not url.startswith(("file:", "data:"))] == []
    assert tab.errors == [] or name == "404.html"  # whose paths begin at the root of a server
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_search_finds_a_name_in_pages_from_the_disk(site, tab):
    tab.goto((site / "concepts.html").as_uri())
    tab.keyboard.press("/")
    field = tab.locator("input[type=text], input[type=search], input:not([type])").first
    field.wait_for(state="visible")
    field.fill("AttentionTransfer")
    link = tab.locator("a[href*='kdkit.losses.AttentionTransfer']").first
    link.wait_for(state="visible", timeout=10_000)
    link.click()
    tab.wait_for_url("**/reference/kdkit.losses.html*AttentionTransfer*")
    assert tab.errors == []


def test_the_theme_follows_the_system_and_the_button(site, browser):
    page = browser.new_page(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    shown = "document.body.getAttribute('data-md-color-scheme')"
    assert page.evaluate(shown) == "slate"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{shown} === 'default'")
    picture = page.locator("img[src*='report-']")
    assert [picture.nth(index).is_visible() for index in range(picture.count())] == [True, False]
    page.close()
