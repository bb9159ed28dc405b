"""Commands with any options end with an exit code and a message, and execute no recipe file that nobody signed."""

from tests.fuzz.fuzz_options import fuzz, fuzz_recorded
from tests.fuzz.meter import Meter


def test_any_options_give_nothing_but_messages(tmp_path):
    meter = Meter()
    fuzz(tmp_path, meter, 50)
    assert all(meter.outcomes[outcome] for outcome in ("read", "refused"))


def test_a_record_that_nobody_signed_executes_nothing(tmp_path):
    meter = Meter()
    fuzz_recorded(tmp_path, meter, 40)
    assert meter.outcomes["refused"]
