"""The page of a report in a real browser: no errors, tabs, sorting, themes, and print."""

import os
import time

import pytest

from kdkit.report import write_report
from tests.helpers.reports import distillation, run

pytestmark = pytest.mark.browser

SCREENSHOTS = os.environ.get("KDKIT_SCREENSHOTS")  # a folder in which to keep pictures of the page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the report of two seeds, and of one run."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        run(folder / f"seed{seed}", distillation, baseline=True, seed=seed, gradients=1, progress=False)
        for seed in range(2)
    ]
    write_report(runs[:1], folder / "single.html")
    write_report(runs, folder / "several.html")
    return folder.as_uri()


@pytest.fixture(params=["single", "several"])
def page(request, browser, address):
    """A page in the light theme. Errors in its console, and requests to other addresses, fail the test."""
    problems = []
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page = context.new_page()
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else 0)
    began = time.perf_counter()
    page.goto(f"{address}/{request.param}.html")
    page.opened_in = time.perf_counter() - began
    yield page
    context.close()
    assert not problems


def column(page, number):
    return page.locator("table.sortable").first.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_the_page_opens_quickly(page):
    assert page.opened_in < 2
    assert page.locator("h1").is_visible()
    assert page.title().endswith("kdkit report")


def test_the_verdict_and_the_networks_are_on_the_first_screen(page):
    for locator in (page.locator(".verdict .chart").first, page.locator(".sentence").first, page.locator("#nets")):
        box = locator.bounding_box()
        assert box["y"] + box["height"] < 860


def test_tabs_work_with_mouse_and_keyboard(page):
    tabs = page.get_by_role("tab")
    assert tabs.count() == 7
    assert page.get_by_role("tabpanel").count() == 1  # the others are hidden
    for index in range(tabs.count()):
        tabs.nth(index).click()
        assert tabs.nth(index).get_attribute("aria-selected") == "true"
        panel = page.locator(f"#{tabs.nth(index).get_attribute('aria-controls')}")
        assert panel.is_visible()
        assert page.locator(".panel:visible").count() == 1
    tabs.nth(6).press("ArrowRight")
    assert tabs.nth(0).get_attribute("aria-selected") == "true"
    tabs.nth(0).press("End")
    assert page.url.endswith("#setup")
    page.reload()
    assert page.locator("#setup").is_visible()


def test_tables_are_sorted_by_their_headings(page):
    heading = page.locator("table.sortable").first.locator("thead th").last
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    count = page.locator("table.sortable").first.locator("thead th").count()
    values = [float(text.split()[0]) for text in column(page, count)]
    assert values == sorted(values, reverse=True)
    heading.locator("button").click()
    assert [float(text.split()[0]) for text in column(page, count)] == sorted(values)
    page.locator("table.sortable").first.locator("thead button").first.click()
    names = [name.split()[0] for name in column(page, 1)]
    assert names == sorted(names)


def test_the_figures_of_classes_are_chosen(page):
    page.get_by_role("tab", name="Classes").click()
    assert page.locator(".figure-table:visible").count() == 1
    page.get_by_role("button", name="AUROC").click()
    assert page.locator(".figure-table:visible").get_attribute("data-figure") == "auroc"


def test_the_theme_follows_the_system_and_the_button(page):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert dark != light
    page.locator("#theme").click()
    assert background() == light
    page.locator("#theme").click()
    assert background() == dark


def test_all_sections_are_printed(page):
    page.emulate_media(media="print")
    assert page.locator(".panel:visible").count() == 7
    assert page.locator("nav").is_hidden()
    assert page.locator(".figure-table:visible").count() == 5
    assert len(page.pdf()) > 10_000


def test_a_cell_of_the_similarity_of_layers_has_its_value(page):
    page.get_by_role("tab", name="Agreement").click()
    cell = page.locator(".maps .heat").first
    assert cell.is_visible()
    assert cell.locator("title").text_content().startswith("hidden, hidden: ")
    fill = cell.evaluate("(element) => getComputedStyle(element).fill")
    page.emulate_media(color_scheme="dark")
    assert cell.evaluate("(element) => getComputedStyle(element).fill") != fill


def test_without_scripts_all_sections_follow_each_other(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/single.html")
    assert page.locator(".panel:visible").count() == 7
    assert page.locator("#theme").is_hidden()
    context.close()


def test_a_narrow_page_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for tab in page.get_by_role("tab").all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab.inner_text()


@pytest.mark.skipif(SCREENSHOTS is None, reason="KDKIT_SCREENSHOTS names no folder")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots_are_kept(page, theme, request):
    page.emulate_media(color_scheme=theme)
    name = request.node.callspec.params["page"]
    for tab in page.get_by_role("tab").all():
        tab.click()
        page.screenshot(path=f"{SCREENSHOTS}/report-{name}-{theme}-{tab.inner_text().lower()}.png", full_page=True)
