"""The settings of a trial that its run records, by which a later study recognizes the run as that of the trial."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdkit.engine.options import RunOptions
from kdkit.engine.run_record import Origin, option_texts

_RUN_OPTIONS = ("precision", "baseline")  # that change the results of a run by more than rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """What a trial shares with each run of it, and what is known without reading the data."""

    name: str
    recipe_sha256: str | None
    options: Mapping[str, str]
    run_options: Mapping[str, Any]
    seed: Any

    @classmethod
    def of(cls, name: str, origin: Origin, options: RunOptions) -> "TrialSettings":
        """Return the settings of a trial. origin: its recipe file and the options of its recipe."""
        return cls(
            name=name,
            recipe_sha256=origin.sha256,
            options=option_texts(origin.options),
            run_options={name: getattr(options, name) for name in _RUN_OPTIONS},
            seed=options.seed,
        )

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """Return in what the record of a run differs; empty if it is a run of this trial."""
        changed = record.get("recipe_sha256") != self.recipe_sha256
        return [*(["its recipe file, which has changed"] if changed else []), *self._different_values(record)]

    def _different_values(self, record: Mapping[str, Any]) -> Iterator[str]:
        recorded = record.get("options")
        options = recorded if isinstance(recorded, Mapping) else {}  # the file may be changed
        pairs = {
            f"option {name}": [values.get(name, "its default") for values in (options, self.options)]
            for name in dict.fromkeys([*options, *self.options])
        }
        pairs |= {name: [record.get(name), value] for name, value in {"seed": self.seed, **self.run_options}.items()}
        for name, (before, current) in pairs.items():
            if before != current:
                yield f"its {name}: it had {before!s:.500}, and now it is {current!s:.500}"


def unknown_run(settings: Sequence[TrialSettings], runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return how the first run differs that is none of these trials, not even with another seed; None if there is none.

    runs: the records of runs by name.
    """
    names = {(_key(trial.options), repr(trial.seed)): trial.name for trial in settings}
    cells = {_key(trial.options): trial for trial in settings}
    for run, record in runs.items():
        seed, recorded = record.get("seed"), record.get("options")
        options = _key(recorded if isinstance(recorded, Mapping) else {})
        # Of thousands of runs, all but the one that differs are found by their options.
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
