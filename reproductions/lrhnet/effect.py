"""What distillation changes: each row against others, at the same leads and from the same seed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from kdkit import Metric, Study, Trial
from kdkit.metrics import Difference, MacroAUPRC, MacroF1, SplitPredictions, paired_bootstrap, paired_t_interval
from kdkit_ecg import ChallengeMetric
from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.protocol import LEADS, ROWS, Protocol, name, trials
from reproductions.lrhnet.table_formats import as_csv, markdown

SCORES = {"macro_auprc": "macro AUPRC", "challenge_metric": "CM", "macro_f1": "macro-F1"}
SCORED: Mapping[str, Metric] = {each.name: each for each in (MacroAUPRC(), ChallengeMetric(2020), MacroF1())}
AGAINST = ("alone", "kd")

Figures = Mapping[tuple[str, int, str], Mapping[int, float]]  # by (row, leads, score), then by seed


@dataclass(frozen=True, slots=True)
class Effect:
    """One row less another, x100. difference: over seeds. patients: over test records, where all seeds share them."""

    row: str
    against: str
    leads: int
    score: str
    difference: Difference
    patients: Difference | None = None


def asked_cells(seeds: Sequence[int], protocol: Protocol, data: Path | None) -> tuple[Trial, ...]:
    """Return the cells of all rows, seed by seed, each once."""
    found = {}
    for seed, leads, row in product(seeds, LEADS, ROWS):
        found.update({trial.name: trial for trial in trials(row, leads, seed, protocol, data)})
    return tuple(found.values())


def figures_of(study: Study, seeds: Sequence[int], protocol: Protocol) -> Figures:
    """Return every score of every row, x100, and of the teachers."""
    nets = [("teacher", leads) for leads in (12, *LEADS)] + list(product(ROWS, LEADS))
    return {
        (row, leads, score): {
            seed: 100 * study.metrics(name(row, leads, seed, protocol))[row][score].value for seed in seeds
        }
        for (row, leads), score in product(nets, SCORES)
    }


def effects_of(figures: Figures) -> list[Effect]:
    """Return what each row with teachers gains, against the net alone and against vanilla KD."""
    return [
        Effect(row, against, leads, score, _difference(figures[row, leads, score], figures[against, leads, score]))
        for score, leads, against, row in product(SCORES, LEADS, AGAINST, ROWS[1:])
        if row != against
    ]


def with_patients(effects: Sequence[Effect], study: Study, seeds: Sequence[int], protocol: Protocol) -> list[Effect]:
    """Return the effects with an interval over the test records too, of the mean over seeds."""

    def said(row: str, leads: int) -> list[SplitPredictions]:
        return [study.predictions(name(row, leads, seed, protocol), row) for seed in seeds]

    found = []
    for each in effects:
        plain = paired_bootstrap(SCORED[each.score], said(each.row, each.leads), said(each.against, each.leads))
        low, high = plain.interval
        found.append(replace(each, patients=replace(plain, value=100 * plain.value, interval=(100 * low, 100 * high))))
    return found


def write_effects(figures: Figures, effects: Sequence[Effect], folder: Path, opening: Sequence[str]) -> None:
    """Write the page and its tables as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = len(next(iter(figures.values())))
    (folder / "scores.csv").write_text(csv_scores(figures))
    (folder / "differences.csv").write_text(csv_effects(effects))
    parts = [
        *opening,
        "## Differences",
        f"x100, over {runs} pairs of runs from the same seed, with Student's 95 % interval of the mean. Of "
        f"{len(effects)} intervals, one in twenty would leave 0 out by chance alone.",
        markdown_effects(effects),
        "## Scores",
        f"x100, of the test split: the mean over {runs} seeds ± their standard deviation.",
        markdown_scores(figures),
        "The same as files: [differences.csv](differences.csv), and each run in [scores.csv](scores.csv).",
    ]
    (folder / "effect.md").write_text("\n\n".join(parts) + "\n")


def markdown_effects(effects: Sequence[Effect]) -> str:
    """Return a line for each comparison; the interval over patients stands last, where there is one."""
    heads = ["score", "model", "against", "leads", "difference", "95 % interval", "verdict"]
    body = []
    for each in effects:
        names = [SCORES[each.score], TITLES[each.row], TITLES[each.against], str(each.leads)]
        line = [*names, f"{each.difference.value:+.2f}", interval(each.difference), each.difference.verdict]
        body.append([*line, interval(each.patients)] if each.patients else line)
    return markdown([*heads, "over patients"] if effects[0].patients else heads, body)


def interval(difference: Difference) -> str:
    """Return an interval as it stands in a table."""
    return "{:+.2f} to {:+.2f}".format(*difference.interval)


def csv_effects(effects: Sequence[Effect]) -> str:
    """Return a line for each comparison, x100."""
    heads = ("score", "model", "against", "leads", "difference", "low", "high", "pairs", "verdict")
    lines = []
    for each in effects:
        names, found = (each.score, TITLES[each.row], TITLES[each.against], each.leads), each.difference
        patients = (None, None) if each.patients is None else each.patients.interval
        lines.append((*names, found.value, *found.interval, found.pairs, found.verdict, *patients))
    return as_csv((*heads, "patients_low", "patients_high"), lines)


def markdown_scores(figures: Figures) -> str:
    """Return a line for each net."""
    body = []
    for row, leads in dict.fromkeys((row, leads) for row, leads, _ in figures):
        values = [list(figures[row, leads, score].values()) for score in SCORES]
        body.append([TITLES[row], str(leads), *(f"{fmean(each):.2f} ± {stdev(each):.2f}" for each in values)])
    return markdown(["model", "leads", *SCORES.values()], body)


def csv_scores(figures: Figures) -> str:
    """Return a line for each score of each run, x100."""
    lines = [
        (TITLES[row], leads, score, seed, value)
        for (row, leads, score), found in figures.items()
        for seed, value in found.items()
    ]
    return as_csv(("model", "leads", "score", "seed", "value"), lines)


def _difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    ours, theirs = (dict[Hashable, float](each.items()) for each in (one, other))
    return paired_t_interval(ours, theirs)
