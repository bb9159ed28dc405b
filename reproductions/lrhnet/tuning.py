"""Choose a protocol by scores on the validation split, without any test record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kdkit import Study, Trial
from reproductions.lrhnet.protocol import LEADS, START, TUNING_SEEDS, Protocol, Step, steps, trial_name, trials
from reproductions.lrhnet.recipe import TAUGHT_ROWS
from reproductions.lrhnet.table_formats import as_csv, markdown

HYPERPARAMETERS = ("epochs", "augment", "kd_loss", "label_weight")
SCORE = "macro_auprc"  # needs no threshold


@dataclass(frozen=True, slots=True)
class Candidate:
    """A protocol of a tuning step with its scores, x100, by (leads, seed)."""

    step: Step
    protocol: Protocol
    scores: dict[tuple[int, int], float]

    @property
    def mean(self) -> float:
        """The score to choose by."""
        return fmean(self.scores.values())

    @property
    def hyperparameters(self) -> list[object]:
        """Their values; "-" for those that do not affect a row without teachers."""
        values = [getattr(self.protocol, name) for name in HYPERPARAMETERS]
        return values if self.step.row in TAUGHT_ROWS else [*values[:2], "-", "-"]


def tune(folder: Path, data: Path | None, run: Callable[[Study], None]) -> tuple[Protocol, Sequence[Candidate]]:
    """Return the protocol with the best mean score of each step, and all candidates; run: runs a study's trials."""
    best, candidates = START, []
    for step in steps(data):
        protocols = list(step.candidates(best))
        study = Study(folder, tuning_trials(step, protocols, data))
        run(study)
        step_candidates = [Candidate(step, protocol, scores(study, step, protocol)) for protocol in protocols]
        best = max(step_candidates, key=lambda candidate: candidate.mean).protocol
        candidates += step_candidates
    return best, candidates


def tuning_trials(step: Step, protocols: Sequence[Protocol], data: Path | None) -> tuple[Trial, ...]:
    """Return the trials of a step, each once."""
    by_name = {
        trial.name: trial
        for seed in TUNING_SEEDS
        for leads in LEADS
        for protocol in protocols
        for trial in trials(step.row, leads, seed, protocol, data, without_test=True)
    }
    return tuple(by_name.values())


def scores(study: Study, step: Step, protocol: Protocol) -> dict[tuple[int, int], float]:
    """Return a protocol's scores, x100, by (leads, seed)."""
    return {
        (leads, seed): 100 * study.metrics(trial_name(step.row, leads, seed, protocol))[step.row][SCORE].value
        for leads in LEADS
        for seed in TUNING_SEEDS
    }


def write_tuning(chosen: Protocol, candidates: Sequence[Candidate], folder: Path, opening: Sequence[str]) -> None:
    """Write the page and its table as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [f"{leads} leads, seed {seed}" for leads in LEADS for seed in TUNING_SEEDS]
    header = ("step", "row", *HYPERPARAMETERS, "mean", *runs)
    lines = [
        (
            candidate.step.name,
            candidate.step.row,
            *candidate.hyperparameters,
            candidate.mean,
            *candidate.scores.values(),
        )
        for candidate in candidates
    ]
    (folder / "tuning.csv").write_text(as_csv(header, lines))
    first_score = len(header) - len(runs) - 1  # the column of the mean
    body = [[*map(str, line[:first_score]), *(f"{score:.2f}" for score in line[first_score:])] for line in lines]
    parts = [
        *opening,
        f"Macro AUPRC x100 on the **validation** split, over {len(runs)} runs. Each step starts from the choice of the "
        "previous one, and chooses the greatest mean.",
        markdown(header, body),
        "Chosen: " + ", ".join(f"{name} {getattr(chosen, name)}" for name in HYPERPARAMETERS) + ".",
        "The same as a file: [tuning.csv](tuning.csv).",
    ]
    (folder / "tuning.md").write_text("\n\n".join(parts) + "\n")
