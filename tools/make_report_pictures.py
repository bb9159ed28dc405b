"""Draw docs/images/report-light.png and report-dark.png, the first screen of the report of a run, and report-ecgs.png.

    kdkit run examples/lrhnet_pmlkd.py --epochs 8 --records 480 --baseline --out RUN
    python tools/make_report_pictures.py RUN

It needs playwright, and chromium on the path.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from kdkit.report import write_report

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main(run: Path) -> None:
    """Write the pictures of a run."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        write_report([run], page)
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=theme)
            tab.goto(page.as_uri())
            tab.screenshot(path=IMAGES / f"report-{theme}.png")
        tab = browser.new_page(viewport={"width": 1128, "height": 900}, color_scheme="light")
        tab.goto(page.as_uri())
        tab.get_by_role("tab", name="ECGs").click()
        tab.locator("figure.ecg").first.screenshot(path=IMAGES / "report-ecgs.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
