"""Plots of a study as PNG and SVG, without a display: Figure 4 of LRH-Net's paper, and score against rungs."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit import KdkitError
from reproductions.lrhnet.grid import TITLES
from reproductions.lrhnet.results import Results

BARS = ("alone", "kd", "smlkd", "pmlkd")


def figure_4(results: Results, folder: Path) -> str:
    """Write the challenge metric of LRH-Net by number of leads, and return what its error bars say."""
    figure, axes = canvas()
    rows = [row for row in BARS if row in results.grid.rows]
    told: set[str] = set()
    for place, row in enumerate(rows):
        bars = {at: results.bar(row, leads) for at, leads in enumerate(results.grid.leads)}
        there = {at: bar for at, bar in bars.items() if bar is not None}
        told |= {bar[2] for bar in there.values()}
        width = 0.8 / len(rows)
        axes.bar(
            [at + (place - (len(rows) - 1) / 2) * width for at in there],
            [bar[0] for bar in there.values()],
            width,
            yerr=list(zip(*(bar[1] for bar in there.values()), strict=True)) or None,
            capsize=3,
            label=TITLES[row],
        )
    axes.set_xticks(range(len(results.grid.leads)), [f"{leads} leads" for leads in results.grid.leads])
    axes.set_ylabel("challenge metric x100")
    figure.legend(loc="outside upper center", ncols=4)
    saved(figure, folder / "figure4")
    return ", or ".join(sorted(told))


def lines(points: Mapping[str, Sequence[tuple[int, float, float]]], labels: tuple[str, str], stem: Path) -> None:
    """Write a line for each name, through (x, y, error); labels: of x and y."""
    figure, axes = canvas()
    for name, each in points.items():
        axes.errorbar(
            [x for x, _, _ in each],
            [y for _, y, _ in each],
            yerr=[error for _, _, error in each],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    saved(figure, stem)


def require_matplotlib() -> None:
    """Raise KdkitError where the plots of hours of training could not be made at their end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise KdkitError("the report's plots need matplotlib, which is not installed: pip install 'kdkit[plots]'")


def canvas() -> tuple[Any, Any]:
    """Return a figure and its axes."""
    import matplotlib  # an optional extra, which takes a while to import
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    matplotlib.rcParams["svg.hashsalt"] = "kdkit"  # the same file for the same figures
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def saved(figure: Any, stem: Path) -> None:
    """Write a figure as PNG and SVG, without the date."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
