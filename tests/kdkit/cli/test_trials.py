"""The lines that a sweep or a command with several seeds prints while it runs."""

from kdkit.cli.trials import run_and_print
from kdkit.study.study import Study
from kdkit.study.trial import Trial, TrialResult
from tests.helpers.tiny import one_stage, plain_goal, tiny_net


def recipe():
    return one_stage(tiny_net("student"), plain_goal())


def test_the_remaining_time_does_not_count_runs_that_are_already_finished(tmp_path, capsys):
    trials = [Trial(name=name, recipe=recipe) for name in ("first", "second", "old")]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "trial.json").write_text("{}")
    states = ("finished", "finished", "skipped")
    results = [
        TrialResult(trial=trial, state=state, seconds=600.0) for trial, state in zip(trials, states, strict=True)
    ]
    assert run_and_print(Study(tmp_path, trials), iter(results), "3 runs", jobs=1, quiet=False, notices=False) == {}
    assert capsys.readouterr().out.splitlines() == [
        "3 runs, 1 of them finished",
        "[1/3] first finished in 600 s, about 10 min left",
        "[2/3] second finished in 600 s",
        "[3/3] old skipped",
    ]
