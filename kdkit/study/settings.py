"""The settings of a trial that its run records. A later study uses them to match the run with the trial."""

from collections.abc import Mapping
from typing import Any

from kdkit.engine.options import RunOptions
from kdkit.engine.run_record import Origin, option_texts
from kdkit.utils.read_json import mapping
from kdkit.utils.reprs import without_addresses

Settings = Mapping[str, Any]  # by the keys that they have in the record of a run

_RUN_OPTIONS = ("precision", "baseline")  # options that change results by more than rounding


def settings_of(origin: Origin, options: RunOptions) -> Settings:
    """Return the settings that a trial shares with its runs. They are known without reading the data.

    origin: its recipe file and the options of its recipe. options: with the seed of the trial.
    """
    return {
        "recipe_sha256": origin.sha256,
        "options": option_texts(origin.options),
        "seed": options.seed,
        **{name: getattr(options, name) for name in _RUN_OPTIONS},
        "function": origin.function,
    }


def differences(settings: Settings, record: Mapping[str, Any]) -> list[str]:
    """Return the differences of a run's record from a trial; empty if it is a run of this trial."""
    is_same_code = record.get("recipe_sha256") == settings["recipe_sha256"]
    texts = [] if is_same_code else ["the code of its recipe, which has changed"]
    before, current = mapping(record, "options"), settings["options"]
    pairs = {
        f"option {name}": [values.get(name, "its default") for values in (before, current)]
        for name in dict.fromkeys([*before, *current])
    }
    pairs |= {name: [record.get(name), settings[name]] for name in ("seed", *_RUN_OPTIONS, "function")}
    for name, (old, new) in pairs.items():
        if without_addresses(repr(old)) != without_addresses(repr(new)):  # in the text of a function
            texts.append(f"its {name}: it was {old!s:.500}, and now it is {new!s:.500}")
    return texts


def unknown_run(trials: Mapping[str, Settings], runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describe the first run that does not belong to these trials, even with another seed; None if all of them do.

    trials: their settings by name. runs: the records of runs by name.
    """
    names = {(_key(settings["options"]), repr(settings["seed"])): name for name, settings in trials.items()}
    cells = {_key(settings["options"]): settings for settings in trials.values()}
    for run, record in runs.items():
        seed, options = record.get("seed"), _key(mapping(record, "options"))
        # Found by options, so that thousands of runs are fast; only a run that differs is compared with all trials.
        candidates = [cells[options]] if options in cells else cells.values()
        nearest = min((differences({**settings, "seed": seed}, record) for settings in candidates), key=len)
        if nearest:
            return f"{run}, which differs in {'; and in '.join(nearest)}"
        name = names.get((options, repr(seed)), run)
        if name != run:
            return f"{run}, which would be run again as {name}"
    return None


def _key(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))
