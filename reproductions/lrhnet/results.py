"""What came of a study of LRH-Net: means over runs, and whether one row is better than another."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from kdkit import Study
from kdkit.metrics import BootstrapInterval, Difference
from reproductions.lrhnet.comparisons import CM, Place, difference, metric, value
from reproductions.lrhnet.grid import MULTILEVEL, Grid, Run, name_of
from reproductions.lrhnet.paper_results import SCORES

AGAINST = ("alone", "kd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The mean of a score over runs, x100; sd is None for one run."""

    mean: float
    sd: float | None
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row against another at the same leads, x100. pairs: what the interval rests on, runs or records."""

    row: str
    against: str
    leads: int
    score: str
    difference: Difference
    pairs: str


class Results:
    """The cells of a study that are `ready`, read once; one that is finished but was refused is another's."""

    def __init__(self, study: Study, grid: Grid, ready: Collection[str]) -> None:
        self.study, self.grid = study, grid
        self._places: dict[tuple[str, int], dict[Run, Place]] = {}
        for row, leads in product(grid.rows, grid.leads):
            places = {at: Place(name_of(row, leads, at), row) for at in grid.runs}
            self._places[row, leads] = {at: place for at, place in places.items() if place.trial in ready}

    def figure(self, row: str, leads: int, score: str) -> Figure | None:
        """Return a row's figure at these leads; None where no run of it is finished."""
        places = self._places.get((row, leads), {}).values()
        values = [100 * value(self.study, place, score) for place in places]
        if not values:
            return None
        return Figure(mean=fmean(values), sd=stdev(values) if len(values) > 1 else None, runs=len(values))

    def bar(self, row: str, leads: int) -> tuple[float, tuple[float, float], str] | None:
        """Return the challenge metric x100, (how far its error bar goes down, up), and what the bar says."""
        figure = self.figure(row, leads, CM)
        if figure is None or figure.sd is not None:
            return None if figure is None else (figure.mean, (figure.sd or 0.0,) * 2, "sd over runs")
        (place,) = self._places[row, leads].values()
        validation, test = self.study.predictions(*place)
        interval = BootstrapInterval(metric(self.grid.shared)).fit(validation).compute(test).interval or (0.0, 0.0)
        down, up = (abs(100 * bound - figure.mean) for bound in interval)
        return figure.mean, (down, up), "95 % interval over the test records of one run"

    def comparisons(self) -> Sequence[Comparison]:
        """Return each row of students against LRH-Net alone and against vanilla KD."""
        rows = [row for row in self.grid.rows if row in ("kd", "fitnet", "pskd", "cross_layer", *MULTILEVEL)]
        found = [
            self._compared(row, against, leads, score)
            for score in SCORES
            for leads in self.grid.leads
            for row in rows
            for against in AGAINST
            if row != against
        ]
        return [each for each in found if each is not None]

    def _compared(self, row: str, against: str, leads: int, score: str) -> Comparison | None:
        one, other = (self._places.get((each, leads), {}) for each in (row, against))
        found = difference(self.study, one, other, score, self.grid.shared)
        if found is None:
            return None
        return Comparison(row=row, against=against, leads=leads, score=score, difference=found[0], pairs=found[1])
