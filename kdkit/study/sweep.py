"""Run a recipe with every combination of some options, each with several seeds, and compare the combinations."""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.engine.options import RunOptions, require_options
from kdkit.errors import RecipeError, Terminated, describe_error, did_you_mean
from kdkit.metrics.base import Metric
from kdkit.recipe.recipe import Recipe, nets_of
from kdkit.study.cell_comparison import compare_cells
from kdkit.study.study import Study
from kdkit.study.sweep_results import Cell, Repetition, SweepResults
from kdkit.study.trial import Trial, TrialResult, recipe_of
from kdkit.utils.reprs import describe_count, describe_names
from kdkit.utils.signatures import parameters_by_name
from kdkit.utils.validation import is_whole_number, validate_count

Values = Sequence[Any] | NDArray[Any] | torch.Tensor

_LONGEST_VALUE, _LONGEST_NAME = 40, 150  # characters of a folder name; file systems allow 255 bytes


class Sweep:
    """A study of a recipe over a grid of options and over seeds.

        sweep = kdkit.Sweep(recipe, {"temperature": [2.0, 4.0, 8.0]}, folder="runs/temperatures", seeds=5)
        for result in sweep.run(jobs=2):
            print(result.trial.name, result.state)
        for verdict in sweep.results().verdicts():
            print(verdict)

    recipe: a function that returns a Recipe. grid: the values of each swept parameter of `recipe`; every combination
    is a cell. Parameters that are not in the grid keep their defaults. folder: of all runs, as for a Study.
    seeds: the number of seeds, counted from 0, or the seeds themselves. metric: the name of the compared metric; the
    recipe's first one if None. net: the name of the compared net; the net trained last if None.
    average_over: parameters of the grid whose values are repetitions, like seeds, such as the folds of a
    cross-validation: every cell runs with each of them, and is compared by its mean. reference: values of some
    parameters of the grid, such as {"method": "kd"}: each cell is compared with the one that has these values and
    otherwise its own; if None, the best cell is compared with the others. amend: called with each trial; returns it
    with more to record, such as its command.

    Raises RecipeError if `recipe` has no such parameter or needs others, if values or seeds are repeated, and if the
    grid does not have the values of the reference.
    """

    def __init__(
        self,
        recipe: Callable[..., Recipe],
        grid: Mapping[str, Values],
        *,
        folder: str | Path,
        seeds: int | Values = 3,
        metric: str | None = None,
        net: str | None = None,
        average_over: str | Sequence[str] = (),
        reference: Mapping[str, Any] | None = None,
        amend: Callable[[Trial], Trial] | None = None,
    ) -> None:
        self.recipe, self.metric, self.net = recipe, metric, net
        self.grid = _ordered(recipe, {name: _as_list(values) for name, values in grid.items()})
        self.seeds = _as_seeds(seeds)
        averaged = (average_over,) if isinstance(average_over, str) else tuple(average_over)
        for name in averaged:
            if name not in self.grid:
                raise RecipeError(f"the grid has no {name!r} to average over; {did_you_mean(name, self.grid)}")
        self.average_over = tuple(name for name in self.grid if name in averaged)
        compared = [name for name in self.grid if name not in averaged]
        self.reference = dict(reference or {})
        _validate_reference(self.reference, {name: self.grid[name] for name in compared})
        self.cells = tuple(self._cell(options) for options in _combinations(self.grid, compared))
        if self.reference and len(self.cells) > 1 and not any(cell.reference for cell in self.cells):
            raise RecipeError(
                f"all combinations of the grid have {_label(self.reference)}, so none is compared with this reference; "
                "add another value to the grid"
            )
        # Seed by seed, so that an interrupted sweep has some runs of every cell.
        trials = [
            Trial(
                name=cell.trials[_repetition(values, seed)],
                recipe=recipe,
                options=self._in_order({**cell.options, **values}),
                seed=seed,
            )
            for seed in self.seeds
            for values in _combinations(self.grid, self.average_over)
            for cell in self.cells
        ]
        self.study = Study(folder, trials if amend is None else [*map(amend, trials)])
        self._failed: dict[str, BaseException] = {}  # errors of trials in the last call of `run`

    def __repr__(self) -> str:
        cells = describe_count(len(self.cells), "combination")
        trials = describe_count(len(self.study.trials), "trial")
        return f"Sweep({str(self.study.folder)!r}, {trials}, {cells} of {describe_names(self.grid) or 'no options'})"

    def run(
        self, options: RunOptions | None = None, *, callbacks: Sequence[object] = (), jobs: int = 1
    ) -> Iterator[TrialResult]:
        """Run the trials that are not finished, and yield the result of each, as `Study.run` does.

        Before any training, raises RecipeError if no cell has the metric or the net that this sweep compares, and
        RunFolderError if the folder holds other files or runs with other options. The grid must have all values of an
        earlier sweep in the folder, and may have more.
        """
        require_options(options)
        _ = self._compared  # raises for a wrong name before hours of training
        self.study.require_comparable(options or RunOptions())
        self._failed.clear()
        return self._results_of(self.study.run(options, callbacks=callbacks, jobs=jobs))

    def results(self) -> SweepResults:
        """Return the metrics of all finished runs by cell, and how cells differ from the best one or the reference.

        Raises RecipeError if no run is finished, or if the runs have no such net or metric.
        """
        names = {trial.name for trial in self.study.trials if self.study.finished(trial.name)} - self._failed.keys()
        finished = [
            replace(cell, trials={key: name for key, name in cell.trials.items() if name in names})
            for cell in self.cells
        ]
        if not any(cell.trials for cell in finished):
            reason = "sweep.run() runs them while its results are iterated over: for result in sweep.run(): ..."
            for name, error in [*self._failed.items()][:1]:
                reason = f"{len(self._failed)} failed; the first, {name}: {describe_error(error)}"
            raise RecipeError(f"no run in {self.study.folder} is finished, so there is nothing to compare; {reason}")
        if self._compared is None:  # a run finished, but recipe() fails now, for example because its data was moved
            raise RecipeError("recipe() fails for every combination of options, so there is no metric to compare")
        metric, student = self._compared
        return compare_cells(
            self.study,
            finished,
            metric,
            net=self.net,
            student=student,
            average_over=self.average_over,
            reference=_label(self.reference),
        )

    def _results_of(self, results: Iterator[TrialResult]) -> Iterator[TrialResult]:
        """Yield the results of trials, and remember those that failed."""
        for result in results:
            if result.error is not None:
                self._failed[result.trial.name] = result.error
            yield result

    @cached_property
    def _compared(self) -> tuple[Metric, str] | None:
        """The metric that is compared and the net that is trained last; None if recipe() fails for every cell.

        A name of a metric or a net is accepted if the recipe of any cell has it.
        """
        metrics: dict[str, Metric] = {}
        nets: dict[str, None] = {}
        student = ""
        for trial in self.study.trials[: len(self.study.trials) // len(self.seeds)]:  # those of one seed
            try:
                recipe = recipe_of(trial)
                for metric in recipe.metrics:
                    metrics.setdefault(metric.name, metric)
                nets |= dict.fromkeys(net.name for net in nets_of(recipe.stages))
                student = student or list(recipe.stages[-1].objectives)[-1].name
            except Terminated:
                raise
            except (Exception, SystemExit):  # user code may raise anything; the trial of this cell will report it
                continue
            name = self.metric if self.metric is not None else next(iter(metrics))
            if name in metrics and (self.net is None or self.net in nets):
                return metrics[name], student
        if not student:
            return None
        if self.net is not None and self.net not in nets:
            raise RecipeError(f"the recipe has no net {self.net!r}; {did_you_mean(self.net, nets)}")
        raise RecipeError(f"the recipe has no metric {self.metric!r}; {did_you_mean(str(self.metric), metrics)}")

    def _cell(self, options: Mapping[str, Any]) -> Cell:
        varied = [name for name in options if len(self.grid[name]) > 1] or list(options)
        label, reference = (
            _label({name: values[name] for name in varied}) for values in (options, {**options, **self.reference})
        )
        trials = {
            _repetition(values, seed): _trial_name(self._in_order({**options, **values}), seed)
            for seed in self.seeds
            for values in _combinations(self.grid, self.average_over)
        }
        return Cell(
            options=options,
            label=label or "defaults",
            trials=trials,
            reference="" if reference == label else reference,
        )

    def _in_order(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options in the order of the grid, so that the names of trials do not depend on `average_over`."""
        return {name: options[name] for name in self.grid}


def _combinations(grid: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return all combinations of the values of some options."""
    return [dict(zip(names, values, strict=True)) for values in product(*(grid[name] for name in names))]


def _repetition(values: Mapping[str, Any], seed: int) -> Repetition:
    """Return the key of a run in its cell. values: of the options that are averaged over."""
    keys = [value if isinstance(value, Hashable) else _text(value) for value in values.values()]
    return (*keys, seed) if keys else seed


def _as_list(values: Any) -> Any:
    """Return an array or tensor as Python numbers, whose text is the same in every run, and other values unchanged."""
    return values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else values


def _as_seeds(seeds: Any) -> tuple[int, ...]:
    """Return a number of seeds, counted from 0, or a list of seeds, as a tuple."""
    seeds = _as_list(seeds)
    if not isinstance(seeds, Sequence):
        validate_count("seeds", seeds)
        seeds = range(seeds)
    if not seeds or not all(is_whole_number(seed) and seed >= 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise RecipeError(f"seeds must be one or more different integers of at least 0; got {seeds!r}")
    return tuple(map(int, seeds))


def _ordered(recipe: Callable[..., Recipe], grid: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the grid in the order of the parameters of `recipe`. Raises RecipeError if they do not match."""
    parameters = parameters_by_name(recipe).values()
    named = {item.name: item for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    for name, values in grid.items():
        if name not in named and not takes_any:
            raise RecipeError(f"recipe() has no parameter {name!r} to sweep; {did_you_mean(name, named)}")
        _validate_values(name, values)
    for name, item in named.items():
        if item.default is item.empty and name not in grid:
            raise RecipeError(f"recipe() needs a value for {name!r}; add it to the grid, with one value if it is fixed")
    # The names of trials must not depend on the order in the caller's grid.
    names = [name for name in named if name in grid]
    return {name: tuple(grid[name]) for name in (*names, *(name for name in grid if name not in named))}


def _validate_values(name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise RecipeError(f"the grid must have a list of at least one value for each parameter; got {name}={values!r}")
    for index, value in enumerate(values):
        if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:  # a long text leaves out most numbers
            raise RecipeError(
                f"a value of {name} in the grid is an array {tuple(value.shape)}; sweep a tuple of numbers, and create "
                "the array in recipe()"
            )
        # Texts are compared too, because they become folder names.
        if any(earlier == value or _text(earlier) == _text(value) for earlier in values[:index]):
            raise RecipeError(f"the grid has {name}={_text(value)} twice; leave one out")
        if re.search(r" at 0x[0-9a-fA-F]+", str(value)):
            raise RecipeError(
                f"the grid has {name}={value!r}, whose text has a memory address, so a later run would not "
                "recognize it; sweep a name or a number, and create the object in recipe()"
            )


def _validate_reference(reference: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> None:
    """Raise RecipeError if a reference has other options or values than the grid of the compared options."""
    for name, value in reference.items():
        if name not in grid:
            raise RecipeError(f"the reference has {name!r}, which is not compared; {did_you_mean(name, grid)}")
        if value not in grid[name]:
            values = ", ".join(map(_text, grid[name]))
            raise RecipeError(f"the reference has {name}={_text(value)}, but the grid has {name}={values}")


def _trial_name(options: Mapping[str, Any], seed: int) -> str:
    """Return the name of a trial, which is also that of its folder, such as "temperature=0.5,seed=0"."""
    name = ",".join(f"{option}={_value_name(value)}" for option, value in options.items())
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{_digest(name)}"
    return ",".join(filter(None, [name, f"seed={seed}"]))


def _value_name(value: Any) -> str:
    """Return a value as part of a folder name; a digest distinguishes long values and values with other characters."""
    text = _text(value)
    if len(text) <= _LONGEST_VALUE and re.fullmatch(r"[\w+-]+(\.[\w+-]+)*", text, re.ASCII):
        return text
    # Replacing characters alone could make two names equal.
    legal = re.sub(r"[^\w+-]", "_", text, flags=re.ASCII)
    return f"{legal[:_LONGEST_VALUE]}-{_digest(text)}"


def _label(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in options.items())


def _text(value: Any) -> str:
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return "_".join(sorted(map(_text, value)))
    if isinstance(value, tuple | list):
        return "_".join(map(_text, value))
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
