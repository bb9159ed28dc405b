"""Runs that are killed at random moments end in the bits of an undisturbed run: see `tests.helpers.crash`."""

import random
import signal

import pytest

from tests.helpers.crash import CrashTest, results

KILLS = 8  # `python benchmarks/crash.py --kills 100` is the long one


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """A folder of runs, of which the one in "whole" is undisturbed."""
    test = CrashTest(tmp_path_factory.mktemp("crash"))
    test.finish("whole")
    assert len(results(test.folder / "whole" / "run")) > 15
    return test


def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bits(crash):
    kills = crash.disturb("killed", random.Random(0), [signal.SIGKILL] * KILLS)
    assert len(kills) >= KILLS // 2  # the last ones may be too late
    crash.require_same("killed", "whole")
    assert any(kill.lost for kill in kills)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_by_signals_at_random_moments_repeats_no_step_and_ends_in_the_same_bits(crash, number):
    kills = crash.disturb(number.name, random.Random(1), [number] * 4)
    crash.require_same(number.name, "whole")
    assert [kill.lost for kill in kills] == [0] * len(kills)
