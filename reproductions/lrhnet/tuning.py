"""Choose a protocol by what nets say of the selection split: no net is asked about a test record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kdkit import Study, Trial
from reproductions.lrhnet.protocol import LEADS, START, TUNING_SEEDS, Protocol, Step, name, steps, trials
from reproductions.lrhnet.recipe import GUIDED
from reproductions.lrhnet.table_formats import as_csv, markdown

SETTINGS = ("epochs", "augment", "kd_loss", "label_weight")
SCORE = "macro_auprc"  # which needs no threshold


@dataclass(frozen=True, slots=True)
class Tried:
    """What a candidate of a step scored, x100, by (leads, seed)."""

    step: Step
    protocol: Protocol
    values: dict[tuple[int, int], float]

    @property
    def mean(self) -> float:
        """What is compared."""
        return fmean(self.values.values())


def tune(folder: Path, data: Path | None, run: Callable[[Study], None]) -> tuple[Protocol, Sequence[Tried]]:
    """Return the protocol whose steps each scored best on average, and all that was tried; `run` runs a study."""
    best, tried = START, []
    for step in steps(data):
        candidates = list(step.candidates(best))
        study = Study(folder, tuning_cells(step, candidates, data))
        run(study)
        found = [Tried(step, each, values(study, step, each)) for each in candidates]
        best = max(found, key=lambda each: each.mean).protocol
        tried += found
    return best, tried


def tuning_cells(step: Step, candidates: Sequence[Protocol], data: Path | None) -> tuple[Trial, ...]:
    """Return the cells of a step, each once."""
    found = {}
    for seed in TUNING_SEEDS:
        for leads in LEADS:
            for each in candidates:
                found.update({trial.name: trial for trial in trials(step.row, leads, seed, each, data, untested=True)})
    return tuple(found.values())


def values(study: Study, step: Step, protocol: Protocol) -> dict[tuple[int, int], float]:
    """Return a candidate's scores, x100, by (leads, seed)."""
    return {
        (leads, seed): 100 * study.metrics(name(step.row, leads, seed, protocol))[step.row][SCORE].value
        for leads in LEADS
        for seed in TUNING_SEEDS
    }


def write_tuning(chosen: Protocol, tried: Sequence[Tried], folder: Path, opening: Sequence[str]) -> None:
    """Write the page and its table as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [f"{leads} leads, seed {seed}" for leads in LEADS for seed in TUNING_SEEDS]
    heads = ("step", "row", *SETTINGS, "mean", *runs)
    lines = [(each.step.what, each.step.row, *settings(each), each.mean, *each.values.values()) for each in tried]
    (folder / "tuning.csv").write_text(as_csv(heads, lines))
    count = len(heads) - len(runs) - 1
    body = [[*map(str, line[:count]), *(f"{figure:.2f}" for figure in line[count:])] for line in lines]
    parts = [
        *opening,
        f"Macro AUPRC x100 of the **selection** split, over {len(runs)} runs. Each step begins with what the one "
        "before chose, and chooses the greatest mean.",
        markdown(heads, body),
        "Chosen: " + ", ".join(f"{key} {getattr(chosen, key)}" for key in SETTINGS) + ".",
        "The same as a file: [tuning.csv](tuning.csv).",
    ]
    (folder / "tuning.md").write_text("\n\n".join(parts) + "\n")


def settings(tried: Tried) -> list[object]:
    """Return what was tried; a row without teachers knows neither guide nor balance."""
    own = [getattr(tried.protocol, key) for key in SETTINGS]
    return own if tried.step.row in GUIDED else [*own[:2], "-", "-"]
