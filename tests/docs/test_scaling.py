"""The page on scaling has the tables of its constants, and they agree with a calculation by hand."""

import pytest

from tests.helpers.modules import load_module

scaling = load_module("tools/scaling.py")
CHALLENGE, _ = scaling.SETS.values()


def test_the_page_has_the_tables_of_the_constants():
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.with_tables(page) == page, "docs/scaling.md is stale: run python tools/scaling.py"


def test_a_page_without_its_mark_is_refused():
    with pytest.raises(ValueError, match="put it back"):
        scaling.with_tables("# Scaling\n")


def test_bytes_are_right_by_hand():
    counts = dict(scaling.sizes())
    assert counts["raw: 12 leads, 10 s, 500 Hz, int16"][0] == 88_253 * 12 * 5000 * 2
    assert counts["prepared as windows of 4096, float32"][0] == 88_253 * 12 * 4096 * 4
    assert counts["prepared as windows of 4096, float16"][1] == 800_000 * 12 * 4096 * 2
    assert counts["the same for 10 draws"][0] == pytest.approx(0.6 * 88_253 * 10 * 26 * 4)


def test_hours_are_right_by_hand():
    assert scaling.steps(CHALLENGE) == 828
    student = scaling.training(CHALLENGE, scaling.STUDENT_STEP, scaling.STUDENT_FORWARD)
    assert student == pytest.approx(90 * (828 * 0.54 + 276 * 0.18) / 3600)
    assert scaling.teaching(CHALLENGE, scaling.CPU, cached=False) == pytest.approx(90 * 828 * 1.34 / 3600)
    assert scaling.preparation(CHALLENGE, 2) == pytest.approx(88_253 * 0.005 / 7200)


def test_cached_outputs_take_one_pass_per_draw_and_are_shared_by_stages():
    uncached, cached = (scaling.smlkd(CHALLENGE, scaling.CPU, cached=cached) for cached in (False, True))
    once = scaling.teaching(CHALLENGE, scaling.CPU, cached=True)
    assert uncached - cached == pytest.approx(3 * 9 * once - 2 * once)


def test_the_best_case_of_a_gpu_is_faster_than_the_worst():
    worst, best = scaling.gpu(0), scaling.gpu(1)
    assert best.teacher_step < worst.teacher_step
    assert best.student_step < worst.student_step
    assert worst.teacher_forward == pytest.approx(2 * 1.6e9 * 64 / (31.2e12 * 0.05))


def test_more_machines_take_less_time_down_to_the_longest_chain():
    hours = [scaling.on_machines(CHALLENGE, count) for count in (1, 2, 10, 10_000)]
    assert hours == sorted(hours, reverse=True)
    assert hours[1] == pytest.approx(hours[0] / 2)
    assert hours[-1] == pytest.approx(scaling.chain(CHALLENGE, scaling.CPU))


@pytest.mark.parametrize(
    ("hours", "text"), [(0.5, "30 min"), (2.5, "2.5 h"), (240.0, "10 days"), (24_000.0, "1,000 days")]
)
def test_times_have_a_readable_unit(hours, text):
    assert scaling._time(hours) == text
