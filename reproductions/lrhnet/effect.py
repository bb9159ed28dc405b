"""The effect of distillation: differences between rows, at the same leads and with the same seed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from kdkit import Metric, Study, Trial
from kdkit.metrics import Difference, MacroAUPRC, MacroF1, SplitPredictions, paired_bootstrap, paired_t_interval
from kdkit_ecg import ChallengeMetric
from reproductions.lrhnet.comparisons import times_100
from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.protocol import LEADS, ROWS, Protocol, trial_name, trials
from reproductions.lrhnet.table_formats import as_csv, markdown

SCORES = {"macro_auprc": "macro AUPRC", "challenge_metric": "CM", "macro_f1": "macro-F1"}
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (MacroAUPRC(), ChallengeMetric(2020), MacroF1())}
BASELINES = ("alone", "kd")

Scores = Mapping[tuple[str, int, str], Mapping[int, float]]  # by (row, leads, score), then by seed


@dataclass(frozen=True, slots=True)
class Effect:
    """The difference between a row and a baseline, x100.

    difference: over seeds. patients: over test records, if all seeds test on the same ones.
    """

    row: str
    baseline: str
    leads: int
    score: str
    difference: Difference
    patients: Difference | None = None


def evaluation_trials(seeds: Sequence[int], protocol: Protocol, data: Path | None) -> tuple[Trial, ...]:
    """Return the trials of all rows, seed by seed, each once."""
    by_name: dict[str, Trial] = {}
    for seed, leads, row in product(seeds, LEADS, ROWS):
        by_name.update({trial.name: trial for trial in trials(row, leads, seed, protocol, data)})
    return tuple(by_name.values())


def scores_of(study: Study, seeds: Sequence[int], protocol: Protocol) -> Scores:
    """Return every score of every row and of the teachers, x100."""
    nets = [("teacher", leads) for leads in (12, *LEADS)] + list(product(ROWS, LEADS))
    return {
        (row, leads, score): {
            seed: 100 * study.metrics(trial_name(row, leads, seed, protocol))[row][score].value for seed in seeds
        }
        for (row, leads), score in product(nets, SCORES)
    }


def effects_of(scores: Scores) -> list[Effect]:
    """Return the effect of each row with teachers, against the network alone and against vanilla KD."""
    effects = []
    for score, leads, baseline, row in product(SCORES, LEADS, BASELINES, ROWS[1:]):
        if row != baseline:
            values, baseline_values = (
                dict[Hashable, float](scores[name, leads, score].items()) for name in (row, baseline)
            )
            effects.append(Effect(row, baseline, leads, score, paired_t_interval(values, baseline_values)))
    return effects


def with_patient_intervals(
    effects: Sequence[Effect], study: Study, seeds: Sequence[int], protocol: Protocol
) -> list[Effect]:
    """Return the effects with an interval over the test records too, of the mean over seeds."""

    def predictions(row: str, leads: int) -> list[SplitPredictions]:
        return [study.predictions(trial_name(row, leads, seed, protocol), row) for seed in seeds]

    results = []
    for effect in effects:
        nets, baselines = predictions(effect.row, effect.leads), predictions(effect.baseline, effect.leads)
        results.append(replace(effect, patients=times_100(paired_bootstrap(METRICS[effect.score], nets, baselines))))
    return results


def write_effects(scores: Scores, effects: Sequence[Effect], folder: Path, opening: Sequence[str]) -> None:
    """Write the page and its tables as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = len(next(iter(scores.values())))
    (folder / "scores.csv").write_text(csv_scores(scores))
    (folder / "differences.csv").write_text(csv_effects(effects))
    parts = [
        *opening,
        "## Differences",
        f"x100, over {runs} pairs of runs with the same seed, with Student's 95 % interval of the mean. Of "
        f"{len(effects)} intervals, one in twenty would exclude 0 by chance alone.",
        markdown_effects(effects),
        "## Scores",
        f"x100, on the test split: the mean over {runs} seeds ± their standard deviation.",
        markdown_scores(scores),
        "The same as files: [differences.csv](differences.csv), and each run in [scores.csv](scores.csv).",
    ]
    (folder / "effect.md").write_text("\n\n".join(parts) + "\n")


def markdown_effects(effects: Sequence[Effect]) -> str:
    """Return a line for each effect; the last column is the interval over patients, if there are any."""
    header = ["score", "model", "against", "leads", "difference", "95 % interval", "verdict"]
    body = []
    for effect in effects:
        names = [SCORES[effect.score], TITLES[effect.row], TITLES[effect.baseline], str(effect.leads)]
        difference = effect.difference
        line = [*names, f"{difference.value:+.2f}", interval_text(difference), difference.verdict]
        body.append([*line, interval_text(effect.patients)] if effect.patients else line)
    return markdown([*header, "over patients"] if effects[0].patients else header, body)


def interval_text(difference: Difference) -> str:
    """Return an interval as in a table."""
    return "{:+.2f} to {:+.2f}".format(*difference.interval)


def csv_effects(effects: Sequence[Effect]) -> str:
    """Return a line for each effect, x100."""
    header = ("score", "model", "against", "leads", "difference", "low", "high", "pairs", "verdict")
    lines = []
    for effect in effects:
        names = (effect.score, TITLES[effect.row], TITLES[effect.baseline], effect.leads)
        seeds = effect.difference
        patients = (None, None) if effect.patients is None else effect.patients.interval
        lines.append((*names, seeds.value, *seeds.interval, seeds.pairs, seeds.verdict, *patients))
    return as_csv((*header, "patients_low", "patients_high"), lines)


def markdown_scores(scores: Scores) -> str:
    """Return a line for each network."""
    body = []
    for row, leads in dict.fromkeys((row, leads) for row, leads, _ in scores):
        columns = [list(scores[row, leads, score].values()) for score in SCORES]
        body.append([TITLES[row], str(leads), *(f"{fmean(values):.2f} ± {stdev(values):.2f}" for values in columns)])
    return markdown(["model", "leads", *SCORES.values()], body)


def csv_scores(scores: Scores) -> str:
    """Return a line for each score of each run, x100."""
    lines = [
        (TITLES[row], leads, score, seed, value)
        for (row, leads, score), by_seed in scores.items()
        for seed, value in by_seed.items()
    ]
    return as_csv(("model", "leads", "score", "seed", "value"), lines)
