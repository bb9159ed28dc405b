"""Make all pictures of the docs from real runs: of a terminal, plans, histories, report pages, and the demo.

    python tools/make_pictures.py [--out FOLDER] [--epochs 8] [--records 480]

It takes some minutes; `--epochs 2 --records 48` makes pictures of the same form in one. It needs tmux, npm, chromium or
Google Chrome on the path, and the packages of `pip install -e '.[browser,export,plots]'`. The pictures of docs/images
are made by the default options.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import demo
import make_concept_pictures
import make_plan_pictures
import make_smlkd_picture
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.text import Text

from kdkit.report import write_report

ROOT = Path(__file__).parents[1]
COLUMNS, LINES = 127, 26  # of the terminal
LONGEST = 1800  # seconds of a run
POLL = 0.05  # seconds between two looks at the terminal


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument("--epochs", type=int, default=8, help="of each stage of the runs")
    parser.add_argument("--records", type=int, default=480, help="simulated records of the runs")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    options = ["--epochs", arguments.epochs, "--records", arguments.records, "--baseline", "--device", "cpu"]
    for drawn in (make_concept_pictures, make_plan_pictures):
        for name in drawn.PICTURES:
            (out / f"{name}.svg").write_text(drawn.picture(name), "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        # Apart from each other, or the second would read teacher outputs that the first has cached.
        sequential, parallel = Path(folder, "sequential", "smlkd"), Path(folder, "parallel", "pmlkd")
        screen = terminal_during_run(["examples/lrhnet_smlkd.py", *options, "--out", sequential], arguments.epochs)
        (out / "console.svg").write_text(terminal_picture(screen, "kdkit run lrhnet_smlkd.py --baseline"), "utf-8")
        make_smlkd_picture.main(sequential, out / "smlkd.svg")
        subprocess.run(kdkit_run(["examples/lrhnet_pmlkd.py", *options, "--out", parallel, "--quiet"]), check=True)
        page = Path(folder, "report.html")
        write_report([parallel], page)
        export = [*kdkit_command("export"), sequential, "--to", "onnx", "--out", Path(folder, "student.onnx")]
        # Of a run this short, a single record may cost a metric more than the gate allows.
        subprocess.run([*map(str, export), "--points", "100"], check=True, stdout=subprocess.DEVNULL)
        demo.build(Path(folder, "student.onnx"), Path(folder, "demo"))
        with browser() as program, demo.served(Path(folder, "demo")) as address:
            report_pictures(program, page, out)
            demo_pictures(program, address, out)
    print(f"saved to {out}")


def kdkit_command(name: str) -> list[str]:
    """Return a command of kdkit with the Python and the checkout of this script."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "kdkit", name]


def kdkit_run(arguments: list[object]) -> list[str]:
    """Return the command of a run."""
    return [*kdkit_command("run"), *map(str, arguments)]


def terminal_during_run(arguments: list[object], epochs: int) -> str:
    """Run a command in a terminal of tmux until it ends, and return the screen in two thirds of the student's stage.

    The screen has the escape sequences of its colours.
    """
    server = ["tmux", "-L", f"kdkit-pictures-{os.getpid()}", "-f", os.devnull]
    command = shlex.join(kdkit_run(arguments))
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    # The session lasts until the command ends, and so does its server.
    subprocess.run([*server, "new-session", "-d", *size, "-c", str(ROOT), command], check=True)
    screen, ends = "", time.monotonic() + LONGEST
    try:
        while time.monotonic() < ends:
            captured = subprocess.run([*server, "capture-pane", "-e", "-p"], capture_output=True, text=True)
            if captured.returncode:  # the run has ended
                break
            plain = Text.from_ansi(captured.stdout).plain
            epoch = re.search(r"^student +epoch (\d+) of .* batch (\d+) of", plain, re.MULTILINE)
            # The last screen in which the epoch is at most that of the picture: runs may be faster than this loop.
            if epoch and int(epoch[1]) <= max(1, round(epochs * 2 / 3)):
                screen = captured.stdout
            time.sleep(POLL)
    finally:
        subprocess.run([*server, "kill-server"], capture_output=True)
    if not screen:
        raise SystemExit(f"the terminal never showed the stage of the student; try the command: {command}")
    return screen


def terminal_picture(screen: str, title: str) -> str:
    """Return the picture of a terminal with the fonts of the reader."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=COLUMNS)
    console.print(Text.from_ansi(screen.rstrip("\n")))
    console.print()  # rich cuts the descenders of the last line
    svg = console.export_svg(title=title)
    # rich loads its font from a server.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


@contextmanager
def browser() -> Iterator[Browser]:
    """Open the browser that is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("chromium is not on the path; install it by `apt install chromium`")
    with sync_playwright() as driver:
        # A container has no user namespaces for the sandbox; the pages are of this script alone.
        yield driver.chromium.launch(executable_path=program, args=["--no-sandbox"])


def report_pictures(program: Browser, address: Path, out: Path) -> None:
    """Take the pictures of a page: its first screen in both themes, and parts of its sections."""

    def opened(width: int, theme: str = "light", height: int = 900) -> Page:
        size = {"width": width, "height": height}
        page = program.new_page(viewport=size, color_scheme=theme, device_scale_factor=1.5)
        page.goto(address.as_uri())
        return page

    for theme in ("light", "dark"):
        opened(1280, theme).screenshot(path=out / f"report-{theme}.png")
    # So high that nothing is scrolled, or the tabs would cover a part.
    page = opened(760, height=4000)
    page.get_by_role("tab", name="Agreement").click()
    page.locator(".maps").screenshot(path=out / "report-layers.png")
    page = opened(1128, height=12_000)
    page.get_by_role("tab", name="ECGs").click()
    page.locator("figure.ecg").first.screenshot(path=out / "report-ecgs.png")


def demo_pictures(program: Browser, address: str, out: Path) -> None:
    """Take the picture of the page of an exported network in both themes, with a bundle branch block."""
    for theme in ("light", "dark"):
        page = program.new_page(viewport={"width": 1280, "height": 1080}, color_scheme=theme, device_scale_factor=1.25)
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        page.get_by_role("button", name="LBBB").click()
        page.get_by_text("Simulated record: LBBB").wait_for()
        page.mouse.move(0, 0)
        page.screenshot(path=out / f"demo-{theme}.png")


if __name__ == "__main__":
    main()
