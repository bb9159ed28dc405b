"""Tests of the progress of a run: it is printed to a terminal, nowhere else unless requested, and changes nothing."""

import io
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import kdkit
from kdkit import RecipeError, Study, Trial
from kdkit.engine.display.console import ConsoleCallback, progress_display
from kdkit.engine.display.live import can_redraw
from kdkit.plugins.events import RunStarted
from kdkit.utils.console import Status
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, run_python
from tests.helpers.stages import three, training

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
SCRIPT = """
import kdkit
from tests.helpers.stages import three, training

def recipe():
    print("from recipe")
    return three(training=training(epochs=1))

def main():
    kdkit.run(recipe, device="cpu", progress=False)
    print("---")
    kdkit.run(recipe, device="cpu")

if __name__ == "__main__":
    main()
"""


def run_on_terminal(arguments: list[str], folder: Path) -> str:
    """Run a program whose stdout and stderr are a terminal, and return what it wrote there."""
    leader, terminal = pty.openpty()
    process = ForkedPython(arguments, folder, environment(TERM="xterm"), terminal=os.ttyname(terminal))
    os.close(terminal)
    output = b""
    try:
        while chunk := os.read(leader, 65536):
            output += chunk
    except OSError:  # the terminal is closed when the process has ended
        pass
    finally:
        os.close(leader)
    assert process.wait(60) == 0, output.decode()
    return output.decode()


def run_small(**options):
    return kdkit.run(lambda: three(training=training(epochs=1)), device="cpu", **options)


def test_a_run_in_python_prints_its_progress_to_a_terminal_only(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    silent, shown = run_on_terminal(["script.py"], tmp_path).split("---\r\n")
    assert silent == "from recipe\r\n"
    for text in (
        "from recipe",
        "checking the recipe",
        "3. student",
        "epoch   1",
        "batch 0 of 4",
        "Metrics on test",
    ):
        assert text in shown, shown

    piped = run_python(["script.py"], tmp_path)
    assert piped.stdout == "from recipe\n---\nfrom recipe\n"
    assert piped.stderr == ""


def test_progress_can_be_requested_for_output_that_is_captured(capsys):
    run_small()
    assert capsys.readouterr() == ("", "")
    run_small(progress=True)
    captured = capsys.readouterr()
    assert "epoch   1" in captured.out
    assert "Metrics on test" in captured.out
    assert captured.err.splitlines() == ["preparing the data and the networks ...", "checking the recipe ..."]


def test_the_notices_of_a_run_without_a_display_are_logged(capsys):
    def recipe():
        result = three(training=training(epochs=1))
        result.data.notices = ("mind the labels",)
        return result

    kdkit.run(recipe, device="cpu")
    assert capsys.readouterr() == ("", "note: mind the labels\n")
    kdkit.run(recipe, device="cpu", progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_must_be_true_false_or_none():
    with pytest.raises(RecipeError, match="progress must be True or False; got 'no'"):
        run_small(progress="no")


def test_progress_does_not_change_the_random_states_or_the_results(capsys):
    random.seed(1)
    np.random.seed(1)
    before, numpy_before = random.getstate(), np.random.get_state()[1].tolist()
    shown = run_small(callbacks=[ConsoleCallback(Console(file=io.StringIO(), force_terminal=True))], progress=True)
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numpy_before
    silent = run_small(progress=False)
    terms = [[[epoch["terms"] for epoch in stage] for stage in run.history.values()] for run in (shown, silent)]
    assert terms[0] == terms[1]


def test_a_notebook_shows_lines_in_one_stream_without_a_live_view(monkeypatch, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)  # as in the kernel of a notebook
    with progress_display(None) as (status, callbacks):
        status.show("preparing")
        callbacks[0].run_started(RunStarted(recipe="digits", stages=("student",), device="cpu", seed=0, folder=None))
        assert not can_redraw(callbacks[0].console)
    with progress_display(False) as (_status, callbacks):
        assert callbacks == []
    out, err = capsys.readouterr()
    assert out == "\x1b[1mdigits\x1b[0m: student  (device cpu, seed 0)\n"
    assert err == ""


@pytest.mark.slow
def test_the_trials_of_a_study_print_no_progress_unless_requested(tmp_path, capfd):
    def study(name):
        trials = [Trial(name=f"seed{seed}", recipe=small_recipe, seed=seed) for seed in range(2)]
        return Study(tmp_path / name, trials)

    options = kdkit.RunOptions(device="cpu")
    assert [result.state for result in study("one").run(options)] == ["finished"] * 2
    assert [result.state for result in study("two").run(kdkit.RunOptions(device="cpu", progress=True), jobs=2)]
    assert capfd.readouterr().out == ""
    list(study("three").run(kdkit.RunOptions(device="cpu", progress=True)))
    assert capfd.readouterr().out.count("Metrics on test") == 2


def small_recipe():
    return three(training=training(epochs=1))


SMALL = """
from tests.helpers.stages import three, training

def recipe():
    return three(training=training(epochs=1))
"""


def test_a_command_prints_its_status_at_once(tmp_path):
    recipe_file = str(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text(SMALL)
    arguments = ["-m", "kdkit", "run", recipe_file, "--device", "cpu"]
    done = run_python([*arguments, "--out", "run"], tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"reading {recipe_file} ...",
        "preparing the data and the networks ...",
        "checking the recipe ...",
    ]
    assert done.stdout.startswith("mine: teacher -> assistant -> student")
    quiet = run_python([*arguments, "--out", "quiet", "--quiet"], tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    both = run_python([*arguments, "--out", "both", "--quiet", "--verbose"], tmp_path)
    assert both.returncode == 2
    assert "--quiet and --verbose contradict each other; use one of them" in both.stderr


def test_verbose_prints_settings_and_below_each_epoch_its_weights_speed_and_gradients(capsys):
    run_small(progress=True, verbose=True, gradients=1)
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"versions: kdkit \S+  torch \S+  python \S+", line) for line in lines)
    assert any(line.startswith("settings: seed 0  precision fp32") for line in lines)
    assert any(line.startswith("parameters: teacher ") for line in lines)
    epoch = [number for number, line in enumerate(lines) if line.startswith("   epoch   1")][-1]
    assert re.fullmatch(
        r"      weights truth 0\.5  teacher/soft_targets 0\.\d+  (.*  )?learning rate 0\.1  [\d,]+ samples/s",
        lines[epoch + 1],
    )
    assert re.fullmatch(r"      gradient norms truth \S+  .*", lines[epoch + 2])
    assert re.fullmatch(r"      gradient cosines truth \| teacher/soft_targets \S+.*", lines[epoch + 3])
    assert "gradient cosines" not in map(str.strip, lines)  # a single term has none


def test_a_status_disappears_from_a_terminal_when_it_ends(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(
        "kdkit.utils.console.PrintableConsole",
        lambda **options: Console(file=file, force_terminal=True, width=80),
    )
    with Status() as status:
        status.show("reading [x]")
        assert "reading [x] ..." in file.getvalue()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")  # the line above is erased


def test_only_the_first_process_of_torchrun_shows_a_status(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with Status() as status:
            status.show(f"rank {rank}")
    assert capsys.readouterr().err == "rank 0 ...\n"
