"""The live view of a run on a real terminal: what it shows, and that nothing else on the terminal suffers from it."""

import io
import multiprocessing
import re
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

import kdkit
from kdkit.engine.display.console import ConsoleCallback
from kdkit.engine.display.live import can_redraw
from kdkit.utils.console import PrintableConsole
from tests.helpers.command_line import environment
from tests.helpers.processes import wait_until
from tests.helpers.stages import three, training
from tests.helpers.terminals import Terminal

# Waits in the third epoch of the second stage, and prints in all ways.
RECIPE = """
import logging
import sys
import time
import warnings
from pathlib import Path

import kdkit
from tests.helpers.stages import three, training

logging.basicConfig(format="log: %(message)s")


@kdkit.hookimpl
def step_ended(event):
    if (event.stage, event.epoch, event.batch) == ("assistant", 2, 1):
        print("a print")
        print("an error", file=sys.stderr)
        logging.warning("[red]x[/red]")
        warnings.warn("a warning")
        time.sleep(0.3)  # until the next redraw
    while (event.stage, event.epoch, event.batch) == ("assistant", 2, 2) and Path("wait").exists():
        Path("waiting").touch()
        time.sleep(0.02)


def recipe():
    return three(kdkit.Sequential, training=training(epochs=4))
"""
WORKERS = """
import torch
import kdkit
from tests.helpers.stages import Small, samples, training, truth


class Loud(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 3 and torch.utils.data.get_worker_info() is not None:
            print("printed by a worker", flush=True)
        return samples(32)[index]


def recipe():
    data = kdkit.TorchData(Loud(), samples(24, 1), samples(24, 2), classes=("a", "b", "c"))
    stage = kdkit.Stage({kdkit.Net("student", Small()): truth()}, training(epochs=3, workers=1))
    return kdkit.Recipe(data=data, schedule=[stage])
"""
# Draws the view only when the test lets it continue, so not while the terminal changes its size.
WAITING = """@kdkit.hookimpl
def step_ended(event):
    while Path("wait").exists() and event.epoch == 1:
        Path("waiting").touch()
        if Path("continue").exists():
            Path("continue").unlink()
            break
        time.sleep(0.02)


# tmux scrolls what it wraps off the screen, where no program can erase it, unless the screen is rather full.
print("\\n" * 20)


def recipe"""
COMMAND = ["-m", "kdkit", "run", "recipe_file.py", "--device", "cpu", "--out", "run"]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    terminals = []

    def make(*size):
        terminals.append(Terminal(*size))
        return terminals[-1]

    yield make
    for opened in terminals:
        opened.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "wait").touch()
    return tmp_path


def test_a_terminal_shows_the_whole_run_below_what_is_printed(folder, terminal):
    screen = terminal()
    screen.start(COMMAND, folder)
    shown = screen.wait_for(r"a warning(.|\n)*epoch 3 of 4.*batch [23] of 4")
    lines = shown.splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.startswith("✓ teacher"))
    view = [line for line in lines[first:] if line]
    assert re.fullmatch(r"✓ teacher 0\.\d{4} → ● assistant 0\.\d{4} → ○ student", view[0])
    assert re.fullmatch(r"assistant  epoch 3 of 4  ━{10,}─{10,}  batch [23] of 4", view[1])
    assert re.fullmatch(r"validation accuracy  0\.\d{4}  [▁-█]{2}  best 0\.\d{4} in epoch [12]", view[2])
    assert re.fullmatch(
        r"[\d,]+ samples/s   learning rate 0\.1   about 0:\d\d left in the stage, 0:\d\d in the run", view[3]
    )
    assert view[4].split() == ["weight", "value", "weighted"]
    for line, label, weight in zip(view[5:7], ("truth", "teacher/soft_targets"), ("0.5", "0.5"), strict=True):
        assert re.fullmatch(rf"{label} +{weight} +\d\.\d{{4}} +\d\.\d{{4}}  [▁-█]{{2,3}}", line), line
    assert len(view) == 7
    above = "\n".join(lines[:first])
    for text in ("epoch   2  truth", "a print\n", "an error\n", "log: [red]x[/red]\n", "UserWarning: a"):
        assert text in above, above

    (folder / "wait").unlink()
    assert screen.wait() == 0, screen.text
    text = screen.text
    assert text.count("  epoch ") == 12  # three stages of four epochs, and nothing of the view
    assert "samples/s" not in text
    assert "a print" in text
    assert text.endswith("saved to run")
    assert "\x1b[?25h" in screen.raw.rsplit("\x1b[?25l")[-1]  # the cursor is shown


def test_ctrl_c_is_announced_above_the_view_which_disappears(folder, terminal):
    screen = terminal()
    screen.start(COMMAND, folder)
    wait_until((folder / "waiting").exists)  # before it, a Ctrl-C would end the run after the batch that is shown
    screen.wait_for(r"assistant  epoch 3 of 4.*batch [23] of 4")
    screen.press_ctrl_c()
    shown = screen.wait_for("stopping after this batch; press Ctrl-C again to stop at once\n(.|\n)*samples/s")
    assert shown.index("stopping") < shown.index("✓ teacher")
    (folder / "wait").unlink()
    assert screen.wait() == 130, screen.text
    assert screen.text.endswith("\nto resume from the last checkpoint: kdkit run --resume run\n\nstopped"), screen.text
    assert "samples/s" not in screen.text


@pytest.mark.skipif(multiprocessing.get_all_start_methods()[0] != "fork", reason="workers do not inherit the view")
def test_prints_of_loader_workers_appear_above_the_view(tmp_path, terminal):
    (tmp_path / "recipe_file.py").write_text(WORKERS)
    screen = terminal()
    screen.start(COMMAND, tmp_path)
    assert screen.wait() == 0, screen.text
    assert "weighted" in screen.raw
    assert "weighted" not in screen.text
    assert len(re.findall(r"^printed by a worker$", screen.text, re.MULTILINE)) == 3, screen.text


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_no_part_of_the_view_stays_when_the_terminal_is_resized(tmp_path, terminal):
    (tmp_path / "recipe_file.py").write_text(RECIPE.replace("def recipe", WAITING))
    command = f"{sys.executable} {' '.join(COMMAND)}; sleep 60"  # the screen stays after the end
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "TMUX")}

    def tmux(*arguments):
        done = subprocess.run(
            ["tmux", "-S", tmp_path / "socket", "-f", "/dev/null", *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def wait_until(holds):
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, tmux("capture-pane", "-p", "-S", "-")
            time.sleep(0.1)
        return tmux("capture-pane", "-p", "-S", "-")

    (tmp_path / "wait").touch()
    tmux("new-session", "-d", "-x", "110", "-y", "30", command)
    try:
        for size in [(60, 30), (110, 30), (45, 30), (100, 40)]:
            wait_until((tmp_path / "waiting").exists)
            tmux("resize-window", "-x", str(size[0]), "-y", str(size[1]))
            time.sleep(0.5)
            (tmp_path / "continue").touch()
            wait_until(lambda: not (tmp_path / "continue").exists())
            (tmp_path / "waiting").unlink()  # the next step creates it again
        wait_until((tmp_path / "waiting").exists)
        (tmp_path / "wait").unlink()
        shown = wait_until(lambda: "saved to run" in tmux("capture-pane", "-p", "-S", "-"))
        for part in ("→", "epoch 1 of 4", "validation accuracy", "samples/s", "weighted"):
            assert part not in re.sub(r"   epoch .*", "", shown), shown
    finally:
        tmux("kill-server")


@pytest.mark.parametrize(("columns", "lines"), [(100, 30), (60, 30), (40, 8), (30, 5), (80, 3), (20, 2)])
def test_the_view_fits_any_terminal_and_leaves_the_lines_that_are_printed_without_it(
    columns, lines, terminal, monkeypatch
):
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run_on(terminal(columns, lines))
    monkeypatch.delenv("NO_COLOR")
    live = run_on(terminal(columns, lines))
    assert "\x1b[1A" not in plain.raw  # the cursor never moves up
    assert "\x1b[1A" in live.raw or lines <= 3
    assert without_times(live.text) == without_times(plain.text)


def without_times(text):
    """Return a text without white space, which depends on where lines are wrapped, and without seconds."""
    return re.sub(r"\d+(\.\d)?s", "", re.sub(r"\s", "", text))


def run_on(terminal):
    """Run a small recipe in this process with its progress on a terminal."""
    columns, lines = terminal.size
    console = PrintableConsole(file=terminal.file, width=columns, height=lines, highlight=False)
    kdkit.run(
        lambda: three(kdkit.Sequential, training=training()),
        device="cpu",
        progress=False,
        callbacks=[ConsoleCallback(console)],
    )
    terminal.wait()
    return terminal


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}])
def test_lines_are_printed_instead_in_ci_without_colors_and_on_dumb_terminals(variables, terminal, monkeypatch):
    file = terminal().file
    assert can_redraw(Console(file=file))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not can_redraw(Console(file=file))


def test_lines_are_printed_to_a_file_also_if_it_is_taken_for_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console(file=io.StringIO()).is_terminal
    assert not can_redraw(Console(file=io.StringIO()))
