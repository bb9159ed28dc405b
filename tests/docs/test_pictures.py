"""The pictures of the docs can be made at any time, by one command, from real runs."""

import base64
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"

pytestmark = [pytest.mark.slow, pytest.mark.browser]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def colours_of(picture):
    """Return the number of colours of a PNG."""
    with image.open(io.BytesIO(picture)) as opened:
        return len(opened.convert("RGB").getcolors(maxcolors=1 << 24))


@pytest.mark.skipif(
    CHROMIUM is None or not all(map(shutil.which, ("tmux", "npm"))), reason="tmux, npm or chromium is not installed"
)
def test_all_pictures_of_the_docs_are_made_and_none_is_blank(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    command = [
        sys.executable,
        ROOT / "tools" / "make_pictures.py",
        "--out",
        tmp_path,
        "--epochs",
        "2",
        "--records",
        "48",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in IMAGES.iterdir()}
    with playwright.sync_playwright() as driver:
        program = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for file in tmp_path.iterdir():
            content = file.read_bytes()
            if file.suffix == ".svg":
                page = program.new_page()
                source = base64.b64encode(content).decode()
                page.set_content(f'<img src="data:image/svg+xml;base64,{source}">')
                content = page.screenshot(full_page=True)
            assert colours_of(content) > 30, file.name
        program.close()
    screen = (tmp_path / "console.svg").read_text("utf-8").replace("&#160;", " ")
    assert "student-alone" in screen
    assert "weighted" in screen
    assert "url(" not in screen.replace("url(#", "")  # nothing is loaded
