"""The settings of a trial that its run records. A later study uses them to match the run with the trial."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdkit.engine.options import RunOptions
from kdkit.engine.run_record import Origin, option_texts
from kdkit.utils.read_json import mapping
from kdkit.utils.reprs import without_addresses

_RUN_OPTIONS = ("precision", "baseline")  # options that change results by more than rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """The settings that a trial shares with its runs. They are known without reading the data."""

    name: str
    recipe_sha256: str | None
    function: str | None
    options: Mapping[str, str]
    run_options: Mapping[str, Any]
    seed: Any

    @classmethod
    def of(cls, name: str, origin: Origin, options: RunOptions) -> "TrialSettings":
        """Return the settings of a trial. origin: its recipe file and the options of its recipe."""
        return cls(
            name=name,
            recipe_sha256=origin.sha256,
            function=origin.function,
            options=option_texts(origin.options),
            run_options={name: getattr(options, name) for name in _RUN_OPTIONS},
            seed=options.seed,
        )

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """Return the differences of a run's record from this trial; empty if it is a run of this trial."""
        changed = record.get("recipe_sha256") != self.recipe_sha256
        return [*(["the code of its recipe, which has changed"] if changed else []), *self._different_values(record)]

    def _different_values(self, record: Mapping[str, Any]) -> Iterator[str]:
        options = mapping(record, "options")
        pairs = {
            f"option {name}": [values.get(name, "its default") for values in (options, self.options)]
            for name in dict.fromkeys([*options, *self.options])
        }
        others = {"seed": self.seed, **self.run_options, "function": self.function}
        pairs |= {name: [record.get(name), value] for name, value in others.items()}
        for name, (before, current) in pairs.items():
            if without_addresses(repr(before)) != without_addresses(repr(current)):  # in the text of a function
                yield f"its {name}: it was {before!s:.500}, and now it is {current!s:.500}"


def unknown_run(settings: Sequence[TrialSettings], runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describe the first run that does not belong to these trials, even with another seed; None if all of them do.

    runs: the records of runs by name.
    """
    names = {(_key(trial.options), repr(trial.seed)): trial.name for trial in settings}
    cells = {_key(trial.options): trial for trial in settings}
    for run, record in runs.items():
        seed, options = record.get("seed"), _key(mapping(record, "options"))
        # Found by options, so that thousands of runs are fast; only a run that differs is compared with all trials.
        candidates = [cells[options]] if options in cells else cells.values()
        nearest = min((replace(trial, seed=seed).differences(record) for trial in candidates), key=len)
        if nearest:
            return f"{run}, which differs in {'; and in '.join(nearest)}"
        name = names.get((options, repr(seed)), run)
        if name != run:
            return f"{run}, which would be run again as {name}"
    return None


def _key(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))
