"""Write all that came of LRH-Net's tables: a page, the tables as CSV and LaTeX, verdicts, costs and Figure 4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproductions.lrhnet.grid import Run
from reproductions.lrhnet.model_costs import Cost, costs
from reproductions.lrhnet.plots import figure_4
from reproductions.lrhnet.recipe import SIZES
from reproductions.lrhnet.results import Results
from reproductions.lrhnet.table_formats import (
    csv_costs,
    csv_tables,
    csv_verdicts,
    latex_tables,
    markdown_costs,
    markdown_tables,
    markdown_verdicts,
)

PAPER_RECORDS = 43_000  # of Challenge 2020, about
PAPER = "Chauhan et al. 2022, [arXiv:2204.08000](https://arxiv.org/abs/2204.08000)"


def write_page(results: Results, folder: Path, command: str, sizes: Mapping[int, Sequence[int]]) -> None:
    """Write the files of a report. command: that made it. sizes: records of each fold, see kept_sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    shared, compared = results.grid.shared, results.comparisons()
    nets = costs(results.grid.leads, shared["size"], shared["preset"])
    texts = {
        "tables.csv": csv_tables(results),
        "tables.tex": latex_tables(results),
        "verdicts.csv": csv_verdicts(compared),
        "costs.csv": csv_costs(nets),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    parts = [
        "# LRH-Net's tables",
        f"Made by\n\n```console\n{command}\n```",
        *cautions(results.grid.runs, shared, sizes),
        f"Figures are x100, the mean over runs ± their standard deviation, of the test fold, at thresholds chosen on "
        f"the selection fold. In brackets: the paper ({PAPER}), on all of Challenge 2020.",
        markdown_tables(results),
        "## Verdicts",
        f"{_on_verdicts(results)} Of {len(compared)} comparisons, one in twenty would stand out by chance alone.",
        markdown_verdicts(compared) if compared else "No two rows were asked for that are compared.",
        "## Figure 4",
        f"![Challenge metric by number of leads](figure4.svg)\n\nError bars: {figure_4(results, folder) or 'none'}.",
        "## Costs",
        _on_costs(nets, SIZES[shared["size"]].length),
        markdown_costs(nets),
        "The same as files: [tables.csv](tables.csv), [tables.tex](tables.tex), [verdicts.csv](verdicts.csv), "
        "[costs.csv](costs.csv), [figure4.png](figure4.png).",
    ]
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n")


def cautions(runs: Sequence[Run], shared: Mapping[str, Any], sizes: Mapping[int, Sequence[int]]) -> list[str]:
    """Return what a reader must know before the first figure. sizes: records of each fold, see kept_sizes."""
    size, paper = SIZES[shared["size"]], shared["preset"] == "paper"
    largest = max((sum(each[:2] if paper else each) for each in sizes.values()), default=0)
    told = []
    if shared["data"] is None:
        told.append("**Simulated records.** The figures compare methods, and say nothing about patients.")
    elif largest < PAPER_RECORDS / 2:
        told.append(
            f"**The data is small**: {largest:,} records of the {PAPER_RECORDS:,} or so that the paper learned from. "
            "Rare classes have a handful of positives or none. This page shows that the command makes it; it does not "
            "repeat the paper, and does not say which method is better."
        )
    told += [
        f"Fold {fold}: {learned:,} records to learn from, {validation:,} to choose on, {test:,} to report on."
        for fold, (learned, validation, test) in sorted(sizes.items())
        if fold in {at.fold for at in runs}
    ]
    told.append(
        f"{counted(len({at.fold for at in runs}), 'fold')}, {counted(len({at.seed for at in runs}), 'seed')}, "
        f"{counted(shared['epochs'] or size.epochs, 'epoch')} a net, signals of {size.length:,} samples at "
        f"{size.rate:g} Hz, SE-ResNet {size.teacher} channels wide (the paper: 64), preset {shared['preset']!r}."
    )
    if paper:
        told.append("**Too good**: as in the paper, thresholds and epochs are chosen on the fold that is reported.")
    return told


def counted(number: int, what: str) -> str:
    """Return how many there are, in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _on_verdicts(results: Results) -> str:
    if len(results.grid.runs) > 1:
        return (
            "Of pairs of runs with the same fold and seed: Student's interval of the mean difference, widened where "
            "folds share what they learn from (Nadeau & Bengio 2003)."
        )
    return (
        "There is one run of each row, so a verdict over seeds and folds cannot be given. Instead the test records are "
        "drawn anew, 1,000 times: the interval tells of other patients, not of other seeds, and where seeds differ by "
        "more than it is wide, its verdict is chance."
    )


def _on_costs(nets: list[Cost], length: int) -> str:
    return (
        f"Of the nets as they were trained here, for one record of {length:,} samples. Multiply-adds are those of "
        f"convolutions and linear layers; latency is the median of 30 calls on a CPU, with "
        f"{counted(nets[0].threads, 'thread')}; the file holds fp32 weights as "
        "safetensors. 'In the paper': the parameters of the authors' code."
    )
