"""Plots of a study as PNG and SVG, without a display: Figure 4 of LRH-Net's paper, and scores by number of rungs."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit import KdkitError
from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.results import Results

ROWS = ("alone", "kd", "smlkd", "pmlkd")  # of Figure 4


def plot_figure_4(results: Results, folder: Path) -> str:
    """Write the challenge metric of LRH-Net by number of leads, and return the meaning of its error bars."""
    figure, axes = new_figure()
    rows = [row for row in ROWS if row in results.grid.rows]
    meanings: set[str] = set()
    for index, row in enumerate(rows):
        bars = {x: bar for x, leads in enumerate(results.grid.leads) if (bar := results.bar(row, leads)) is not None}
        meanings |= {bar.meaning for bar in bars.values()}
        width = 0.8 / len(rows)
        # The bars of a number of leads stand next to each other, centred on its tick.
        axes.bar(
            [x + (index - (len(rows) - 1) / 2) * width for x in bars],
            [bar.mean for bar in bars.values()],
            width,
            yerr=list(zip(*((bar.down, bar.up) for bar in bars.values()), strict=True)) or None,
            capsize=3,
            label=TITLES[row],
        )
    axes.set_xticks(range(len(results.grid.leads)), [f"{leads} leads" for leads in results.grid.leads])
    axes.set_ylabel("challenge metric x100")
    figure.legend(loc="outside upper center", ncols=4)
    save_figure(figure, folder / "figure4")
    return ", or ".join(sorted(meanings))


def plot_lines(lines: Mapping[str, Sequence[tuple[int, float, float]]], labels: tuple[str, str], stem: Path) -> None:
    """Write a line for each name, through its (x, y, error); labels: of x and y."""
    figure, axes = new_figure()
    for name, points in lines.items():
        axes.errorbar(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            yerr=[error for _, _, error in points],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    save_figure(figure, stem)


def require_matplotlib() -> None:
    """Raise KdkitError if matplotlib is missing, before hours of training end without plots."""
    if importlib.util.find_spec("matplotlib") is None:
        raise KdkitError("the report's plots need matplotlib, which is not installed: pip install 'kdkit[plots]'")


def new_figure() -> tuple[Any, Any]:
    """Return a figure and its axes."""
    import matplotlib  # an optional dependency, which is slow to import
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    matplotlib.rcParams["svg.hashsalt"] = "kdkit"  # the same file for the same results
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def save_figure(figure: Any, stem: Path) -> None:
    """Write a figure as PNG and SVG, without the date and the version, so that the files are reproducible."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
