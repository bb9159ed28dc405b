"""Write the report on LRH-Net's tables: a page, the tables as CSV and LaTeX, comparisons, costs and Figure 4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.model_costs import model_costs
from reproductions.lrhnet.plots import plot_figure_4
from reproductions.lrhnet.recipe import SIZES
from reproductions.lrhnet.results import Results
from reproductions.lrhnet.table_formats import (
    csv_comparisons,
    csv_costs,
    csv_tables,
    latex_tables,
    markdown_comparisons,
    markdown_costs,
    markdown_tables,
)

PAPER_RECORDS = 43_000  # of Challenge 2020, about
PAPER = "Chauhan et al. 2022, [arXiv:2204.08000](https://arxiv.org/abs/2204.08000)"

OVER_RUNS = (
    "Over pairs of runs with the same fold and seed: Student's interval of the mean difference, widened if folds share "
    "training records (Nadeau & Bengio 2003)."
)
OVER_RECORDS = (
    "There is one run of each row, so seeds and folds cannot be compared. Instead the test records are resampled 1,000 "
    "times: the interval is over other patients, not over other seeds. If seeds differ by more than its width, the "
    "verdict is due to chance."
)


def write_report(results: Results, folder: Path, command: str, split_sizes: Mapping[int, Sequence[int]]) -> None:
    """Write the files of the report.

    command: the one that makes it. split_sizes: the number of records in each split, by fold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared, comparisons = results.grid.shared, results.comparisons()
    costs = model_costs(results.grid.leads, shared["size"], shared["preset"])
    texts = {
        "tables.csv": csv_tables(results),
        "tables.tex": latex_tables(results),
        "verdicts.csv": csv_comparisons(comparisons),
        "costs.csv": csv_costs(costs),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    parts = [
        "# LRH-Net's tables",
        f"Made by\n\n```console\n{command}\n```",
        *cautions(results.grid.runs, shared, split_sizes),
        f"Scores are x100, the mean over runs ± their standard deviation, on the test fold, with thresholds chosen on "
        f"the validation fold. In brackets: the paper ({PAPER}), on all of Challenge 2020.",
        markdown_tables(results),
        "## Verdicts",
        f"{OVER_RUNS if len(results.grid.runs) > 1 else OVER_RECORDS} Of {len(comparisons)} comparisons, one in twenty "
        "would differ by chance alone.",
        markdown_comparisons(comparisons) if comparisons else "The selected rows include no pair to compare.",
        "## Figure 4",
        "![Challenge metric by number of leads](figure4.svg)\n\n"
        f"Error bars: {plot_figure_4(results, folder) or 'none'}.",
        "## Costs",
        f"Of the networks as trained here, for one record of {SIZES[shared['size']].length:,} samples. Multiply-adds "
        "are those of convolutions and linear layers; latency is the median of 30 calls on a CPU, with "
        f"{counted(costs[0].threads, 'thread')}; the file holds fp32 weights as safetensors. 'In the paper': the "
        "parameters of the authors' code.",
        markdown_costs(costs),
        "The same as files: [tables.csv](tables.csv), [tables.tex](tables.tex), [verdicts.csv](verdicts.csv), "
        "[costs.csv](costs.csv), [figure4.png](figure4.png).",
    ]
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n")


def cautions(runs: Sequence[Run], shared: Mapping[str, Any], split_sizes: Mapping[int, Sequence[int]]) -> list[str]:
    """Return the paragraphs that a reader must know before the first result; split_sizes: records by fold."""
    size, paper = SIZES[shared["size"]], shared["preset"] == "paper"
    # With the paper's preset the validation split is the test split: its records are counted once.
    largest = max((sum(counts[:2] if paper else counts) for counts in split_sizes.values()), default=0)
    paragraphs = []
    if shared["data"] is None:
        paragraphs.append("**Simulated records.** The results compare methods; they do not apply to patients.")
    elif largest < PAPER_RECORDS / 2:
        paragraphs.append(
            f"**The data is small**: {largest:,} records of the {PAPER_RECORDS:,} or so that the paper used. Rare "
            "classes have a handful of positives or none. This page shows that the command works; it does not repeat "
            "the paper, and does not show which method is better."
        )
    paragraphs += [
        f"Fold {fold}: {train:,} records for training, {validation:,} for validation, {test:,} for testing."
        for fold, (train, validation, test) in sorted(split_sizes.items())
        if fold in {run.fold for run in runs}
    ]
    paragraphs.append(
        f"{counted(len({run.fold for run in runs}), 'fold')}, {counted(len({run.seed for run in runs}), 'seed')}, "
        f"{counted(shared['epochs'] or size.epochs, 'epoch')} per network, signals of {size.length:,} samples at "
        f"{size.rate:g} Hz, SE-ResNet {size.teacher} channels wide (the paper: 64), preset {shared['preset']!r}."
    )
    if paper:
        paragraphs.append("**Too good**: as in the paper, thresholds and epochs are chosen on the test fold.")
    return paragraphs


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
