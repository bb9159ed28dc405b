"""Draw docs/images/smlkd.svg from a finished run: `python tools/make_smlkd_picture.py RUN [FILE]`.

On the left the networks of sequential multi-level distillation, on the right the monitored metric of each by epoch.

    kdkit run examples/lrhnet_smlkd.py --out runs/smlkd
    python tools/make_smlkd_picture.py runs/smlkd
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "smlkd.svg"
COLORS = {"teacher": "#1b6ca8", "assistant": "#2a9d62", "student": "#d1495b"}
METRIC = "macro_auprc"


def main(run: Path, out: Path = PICTURE) -> None:
    """Read the histories of a run, and draw both panels."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kdkit", "font.size": 11, "font.family": "sans-serif"})
    figure, (networks, curves) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=[1.1, 1])
    record = json.loads((run / "run.json").read_text())
    parameters = {name: net["parameters"] for name, net in record["nets"].items()}
    draw_networks(networks, parameters)
    for index, name in enumerate(COLORS, start=1):
        lines = (run / f"{index}-{name}" / "history.jsonl").read_text().splitlines()
        values = [json.loads(line)[METRIC] for line in lines]
        curves.plot(range(1, len(values) + 1), values, color=COLORS[name], marker="o", markersize=3, label=name)
    curves.set(xlabel="epoch of the stage", ylabel="macro AUPRC, validation split", ylim=(0, 1))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.legend(frameon=False, loc="lower right")
    curves.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})  # the same run gives the same file


def draw_networks(axes: "plt.Axes", parameters: dict[str, int]) -> None:
    """Draw a box for each network, and an arrow from each teacher to the networks that learn from it."""
    leads = {"teacher": 12, "assistant": 3, "student": 3}
    boxes = {"teacher": (0.02, 0.58), "assistant": (0.66, 0.58), "student": (0.34, 0.03)}
    width, height = 0.31, 0.27
    for name, (x, y) in boxes.items():
        box = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.01", facecolor=COLORS[name], edgecolor="none")
        axes.add_patch(box)
        text = f"{name}\n{leads[name]} leads\n{parameters[name]:,} parameters"
        axes.text(x + width / 2, y + height / 2, text, color="white", ha="center", va="center", fontsize=10)
    arrows = [
        ((0.35, 0.72), (0.64, 0.72), "0.7"),  # teacher to assistant
        ((0.18, 0.56), (0.38, 0.32), "0.7 \u00d7 0.6"),  # teacher to student
        ((0.82, 0.56), (0.61, 0.32), "0.7 \u00d7 0.4"),  # assistant to student
    ]
    for start, end, weight in arrows:
        style = {"arrowstyle": "-|>", "color": "#555555", "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=start, arrowprops=style)
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        axes.text(*middle, weight, fontsize=9, ha="center", va="center", backgroundcolor="white")
    axes.text(
        0.02,
        0.95,
        "weights of the distillation losses; 0.3 \u00d7 the loss on the labels is added",
        fontsize=9,
        color="#555555",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
