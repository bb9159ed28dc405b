"""Tests of the live view: what it shows of the events of a run, in any size, and how often it is redrawn."""

import io
import itertools
import math
import time

import pytest
from rich.console import Console

from kdkit.engine.display.live import LiveDisplay
from kdkit.engine.display.progress import RunProgress
from kdkit.engine.display.view import RunView, duration, sparkline
from kdkit.plugins.events import EpochEnded, RunStarted, StageStarted, StepEnded
from kdkit.utils.console import PrintableConsole

NAMES = ("teacher", "assistant", "student")


def run_started(names=NAMES, epochs=10):
    settings = {f"{name}/epochs": epochs for name in names}
    return RunStarted(recipe="recipe", stages=tuple(names), device="cpu", seed=0, folder=None, settings=settings)


def stage_started(index=1, names=NAMES, labels=("truth", "soft"), **changes):
    fields = {
        "epoch": 0,
        "epochs": 10,
        "batches": 100,
        "samples": 3200,
        "learning_rate": 0.1,
        "weights": dict.fromkeys(labels, 0.5),
        "monitor": "accuracy",
    }
    return StageStarted(index=index, name=names[index], **{**fields, **changes})


def step(epoch, batch, terms=None):
    terms = {"truth": 2.0, "soft": 1.0} if terms is None else terms
    return StepEnded(stage="assistant", epoch=epoch, batch=batch, terms=terms, learning_rate=0.05)


def epoch_ended(epoch, value=0.5, *, best=True, labels=("truth", "soft")):
    return EpochEnded(
        stage="assistant",
        epoch=epoch,
        terms=dict.fromkeys(labels, 2.0 / (epoch + 1)),
        weights=dict.fromkeys(labels, 0.5),
        monitor="accuracy",
        monitor_value=value,
        best=best,
        seconds=10,
        learning_rate=0.05,
    )


def progress_of(*events, names=NAMES, seconds=10.0):
    """Return the progress after events of a stage that follow each other after some seconds, and the last time."""
    progress, now = RunProgress(), 0.0
    progress.start(run_started(names))
    for event in events:
        match event:
            case StageStarted():
                progress.start_stage(event, now)
            case StepEnded():
                now += seconds
                progress.step(event)
                progress.read_step(event)
            case EpochEnded():
                now += seconds
                progress.end_epoch(event, now)
    return progress, now


def drawn(progress, now, columns=100, lines=30, **options):
    """Return the lines of the view."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=options.get("encoding", "utf-8"), newline="")
    console = PrintableConsole(file=file, width=columns, height=lines, highlight=False)
    console.print(RunView(progress, lambda: now))
    file.flush()
    return file.buffer.getvalue().decode(file.encoding).rstrip("\n").split("\n")


def test_the_view_shows_stages_position_speed_terms_and_the_metric():
    progress, now = progress_of(stage_started(), epoch_ended(0), epoch_ended(1, 0.4, best=False), step(2, 49))
    assert drawn(progress, now) == [
        "",
        "✓ teacher → ● assistant 0.5000 → ○ student",
        "",
        "assistant  epoch 3 of 10  " + "━" * 14 + "─" * 42 + "  batch  50 of 100",
        "validation accuracy  0.4000  █▁  best 0.5000 in epoch 1",
        "160 samples/s   learning rate 0.05   about 1:10 left in the stage, 2:50 in the run",
        "",
        "         weight     value  weighted",
        "truth       0.5    2.0000    1.0000  █▁█",
        "soft        0.5    1.0000    0.5000  █▁▁",
    ]


def test_a_resumed_stage_has_its_best_value_and_the_stages_before_it_are_done():
    progress, now = progress_of(stage_started(2, epoch=4, batch=20, best_value=0.7))
    lines = drawn(progress, now)
    assert lines[1] == "✓ teacher → ✓ assistant → ● student 0.7000"
    assert lines[3].startswith("student  epoch 5 of 10  ━")
    assert lines[3].endswith("  batch  20 of 100")
    assert lines[4] == "validation accuracy  -  best 0.7000"


def test_after_its_last_batch_an_epoch_is_validated_and_after_the_last_epoch_the_next_stage_is_opened():
    started = stage_started(epochs=1)
    assert drawn(*progress_of(started, step(0, 99)))[3].endswith("validating")
    assert drawn(*progress_of(started, step(0, 99), epoch_ended(0)))[3].endswith("opening the next stage")
    started = stage_started(2, epochs=1)
    assert drawn(*progress_of(started, step(0, 99), epoch_ended(0)))[3].endswith("computing the metrics")


def test_the_time_left_counts_the_validation_and_assumes_that_later_stages_are_as_fast():
    progress, now = progress_of(stage_started(), step(0, 49))
    assert progress.seconds_left(now) == (190.0, 390.0)  # 10 s for half an epoch; 9.5 of 10 epochs, and 10 more
    progress, now = progress_of(stage_started(), step(0, 99), epoch_ended(0))
    assert progress.seconds_left(now) == (180.0, 380.0)  # 20 s for an epoch
    assert progress.seconds_left(now + 5) == (175.0, 375.0)
    assert progress.seconds_left(now + 500)[0] == 160.0  # at least the epochs after this one
    progress, now = progress_of(stage_started(batch=50), step(0, 99), epoch_ended(0))
    assert progress.seconds_left(now)[0] == 360.0  # half an epoch in 20 s
    progress, now = progress_of(stage_started())
    assert progress.seconds_left(now) == (None, None)


def test_batches_are_counted_if_the_number_of_samples_is_unknown():
    progress, now = progress_of(stage_started(samples=None), step(0, 49))
    assert progress.samples_per_second(now) == 5.0
    assert "5 batches/s" in drawn(progress, now)[5]


@pytest.mark.parametrize("names", [NAMES, [f"a_stage_with_a_long_name_{n}" for n in range(30)], ["学生" * 30] * 2])
def test_the_view_is_never_wider_or_taller_than_the_terminal(names):
    labels = [f"{names[0]}/term_{number}" for number in range(13)]
    started = stage_started(names=names, labels=labels)
    events = [started, *(epoch_ended(number, labels=labels) for number in range(9)), step(9, 9, {labels[0]: math.inf})]
    progress, now = progress_of(*events, names=names)
    for columns, lines in itertools.product([1, 10, 20, 40, 60, 79, 100, 250], [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 60]):
        console = Console(width=columns, height=lines, file=io.StringIO())
        shown = console.render_lines(RunView(progress, lambda: now), pad=False)
        assert len(shown) <= max(1, min(15, lines - 1)), (columns, lines)
        assert all(sum(segment.cell_length for segment in line) <= min(columns, 120) for line in shown), (
            columns,
            lines,
        )


def test_a_short_terminal_leaves_out_terms_first_and_keeps_the_position():
    labels = [f"term {number}" for number in range(6)]
    progress, now = progress_of(stage_started(labels=labels), epoch_ended(0, labels=labels))
    lines = drawn(progress, now, lines=9)
    assert [line.split("  ")[0] for line in lines[-4:]] == ["", "term 0", "term 1", "and 4 more terms"]
    assert drawn(progress, now, lines=2)[0].startswith("assistant  epoch 2 of 10")


def test_stages_that_do_not_fit_are_counted():
    names = [f"stage number {number}" for number in range(12)]
    progress, now = progress_of(stage_started(4, names=names), names=names)
    assert drawn(progress, now)[1] == "✓ 4 done → ● stage number 4 → ○ 7 waiting"


def test_names_are_shown_without_markup_and_control_characters():
    names = ["[red]x[/red]", "y\x1b[2J"]
    progress, now = progress_of(
        stage_started(names=names, labels=["[b]", "\x07"], monitor="m\x1b"), step(0, 1, {}), names=names
    )
    text = "\n".join(drawn(progress, now))
    for shown in ("✓ [red]x[/red] → ● y\\x1b[2J", "[b]  ", "\\x07", "validation m\\x1b"):
        assert shown in text, text
    assert "\x1b" not in text


def test_a_terminal_that_is_not_utf_8_gets_ascii():
    progress, now = progress_of(stage_started(), epoch_ended(0), epoch_ended(1))
    text = "\n".join(drawn(progress, now, encoding="ascii"))
    assert "+ teacher -> * assistant 0.5000 -> o student" in text
    assert "####----" in text


def test_a_curve_of_many_values_shows_their_means_and_leaves_out_what_is_not_finite():
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 8, 8], 2) == "▁█"
    assert sparkline([3, 3, 3], 10) == "▄▄▄"
    assert sparkline([1, math.nan, math.inf, 2], 10) == "▁  █"
    assert sparkline([-1.7e308, 1.7e308], 2) == "▁█"
    assert len(sparkline(range(1000), 200)) == 24
    assert sparkline([], 10) == sparkline([1], 0) == sparkline([1], -3) == ""


def test_a_duration_is_shown_as_a_clock():
    assert [duration(seconds) for seconds in (0.4, 59.6, 340, 3940, 360000)] == [
        "0:00",
        "1:00",
        "5:40",
        "1:05:40",
        "100:00:00",
    ]


class SlowFile(io.StringIO):
    """A terminal that takes 20 ms for each write."""

    writes = 0

    def isatty(self):
        return True

    def write(self, text):
        time.sleep(0.02)
        self.writes += 1
        return super().write(text)


def test_a_view_that_is_slow_to_draw_is_drawn_rarely_and_keeps_count_of_the_steps():
    file = SlowFile()
    display = LiveDisplay(Console(file=file, width=80, height=30, force_terminal=True))
    display.progress.start(run_started())
    display.progress.start_stage(stage_started(batches=10**9), time.monotonic())
    display.start()
    before, began, steps = file.writes, time.monotonic(), 0
    while time.monotonic() - began < 1.5:
        display.step(step(0, steps))
        steps += 1
    assert file.writes - before <= 1  # 1 % of the time would be one of 20 ms in 2 s
    assert display.progress.current.batch == steps
    display.stop()


def test_a_validation_is_shown_at_once_after_a_long_epoch_but_not_after_a_short_one(monkeypatch):
    now = 100.0
    monkeypatch.setattr("kdkit.engine.display.live.time.monotonic", lambda: now)
    file = io.StringIO()
    display = LiveDisplay(Console(file=file, width=80, height=30, force_terminal=True))
    display.progress.start(run_started())
    display.progress.start_stage(stage_started(batches=1), now)
    display.start()
    now += 0.1
    display.step(step(0, 0))
    assert "validating" not in file.getvalue()
    display.progress.end_epoch(epoch_ended(0), now)
    now += 2
    display.draw()
    now += 0.1
    display.step(step(1, 0))
    assert "validating" in file.getvalue()
    display.stop()


def test_few_steps_are_read_since_that_may_wait_for_the_device():
    reads = []

    class Terms(dict):
        def items(self):
            reads.append(time.monotonic())
            return super().items()

    display = LiveDisplay(Console(file=io.StringIO(), width=80, height=30, force_terminal=True))
    display.progress.start(run_started())
    display.progress.start_stage(stage_started(batches=10**9), time.monotonic())
    display.start()
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < 2.5:
        display.step(step(0, steps, Terms(truth=1.0)))
        steps += 1
    display.stop()
    assert 2 <= len(reads) <= 4


def test_lines_that_a_narrower_terminal_wraps_are_erased():
    progress, now = progress_of(stage_started(), epoch_ended(0))
    view = RunView(progress, lambda: now)
    file = io.StringIO()
    Console(file=file, width=100, height=30).print(view)
    wider_than_50 = [line for line in file.getvalue().splitlines() if len(line) > 50]
    assert view.rows_added(100) == 0
    assert view.rows_added(50) == len(wider_than_50) == 3
