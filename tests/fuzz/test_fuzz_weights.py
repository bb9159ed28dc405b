"""Damaged files of weights are read, or refused by a KdkitError, within bounds of time and memory."""

from tests.fuzz.fuzz_weights import fuzz
from tests.fuzz.meter import Meter


def test_damaged_weights_give_nothing_but_errors_of_kdkit(tmp_path):
    meter = Meter()
    fuzz(tmp_path, meter, 250)
    # A damaged file of weights can rarely be read.
    assert meter.outcomes["read"] > 2
    assert meter.outcomes["refused"] > 125
