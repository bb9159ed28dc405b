"""The results of a study of LRH-Net's tables: means over runs, and comparisons of rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from kdkit import Study
from kdkit.metrics import BootstrapInterval, Difference
from reproductions.lrhnet.comparisons import CM, TrainedNet, challenge_metric, difference, score_of
from reproductions.lrhnet.grid import MULTILEVEL, Grid, Run, trial_name
from reproductions.lrhnet.paper_results import SCORES

BASELINES = ("alone", "kd")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """The mean of a score over runs, x100; sd is None for a single run."""

    mean: float
    sd: float | None
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBar:
    """A bar of Figure 4, x100, with the lengths of its error bar downwards and upwards."""

    mean: float
    down: float
    up: float
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row against a baseline at the same leads, x100. pairs: the runs or records that the interval is over."""

    row: str
    baseline: str
    leads: int
    score: str
    difference: Difference
    pairs: str


class Results:
    """The results of the trials in `ready`. A finished trial that is not in it was refused for other options."""

    def __init__(self, study: Study, grid: Grid, ready: Collection[str]) -> None:
        self.study, self.grid = study, grid
        self._nets: dict[tuple[str, int], dict[Run, TrainedNet]] = {}  # by row and leads, then by run
        for row, leads in product(grid.rows, grid.leads):
            nets = {run: TrainedNet(trial_name(row, leads, run), row) for run in grid.runs}
            self._nets[row, leads] = {run: net for run, net in nets.items() if net.trial in ready}

    def score(self, row: str, leads: int, score: str) -> MeanScore | None:
        """Return a row's score at these leads; None if no run of it is finished."""
        nets = self._nets.get((row, leads), {}).values()
        values = [100 * score_of(self.study, net, score) for net in nets]
        if not values:
            return None
        return MeanScore(mean=fmean(values), sd=stdev(values) if len(values) > 1 else None, runs=len(values))

    def bar(self, row: str, leads: int) -> ErrorBar | None:
        """Return the challenge metric with its error bar; None if no run is finished."""
        score = self.score(row, leads, CM)
        if score is None:
            return None
        if score.sd is not None:
            return ErrorBar(mean=score.mean, down=score.sd, up=score.sd, meaning="sd over runs")
        (net,) = self._nets[row, leads].values()
        validation, test = self.study.predictions(*net)
        metric = BootstrapInterval(challenge_metric(self.grid.shared)).fit(validation)
        interval = metric.compute(test).interval or (0.0, 0.0)
        down, up = (abs(100 * bound - score.mean) for bound in interval)
        return ErrorBar(mean=score.mean, down=down, up=up, meaning="95 % interval over the test records of one run")

    def comparisons(self) -> Sequence[Comparison]:
        """Return each row of students against LRH-Net alone and against vanilla KD."""
        rows = [row for row in self.grid.rows if row in ("kd", "fitnet", "pskd", "cross_layer", *MULTILEVEL)]
        comparisons = [
            self._comparison(row, baseline, leads, score)
            for score in SCORES
            for leads in self.grid.leads
            for row in rows
            for baseline in BASELINES
            if row != baseline
        ]
        return [comparison for comparison in comparisons if comparison is not None]

    def _comparison(self, row: str, baseline: str, leads: int, score: str) -> Comparison | None:
        nets, baselines = (self._nets.get((name, leads), {}) for name in (row, baseline))
        result = difference(self.study, nets, baselines, score, self.grid.shared)
        if result is None:
            return None
        return Comparison(row=row, baseline=baseline, leads=leads, score=score, difference=result[0], pairs=result[1])
