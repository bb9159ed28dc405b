"""The cards of exports: JSON next to each file, and Markdown about all files of a network."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit.utils.files import read_file, write_output
from kdkit.utils.markdown import as_text, table_lines
from kdkit.utils.printable import printable
from kdkit.utils.read_json import read_json
from kdkit.utils.reprs import format_bytes

FOLDER = "export"  # in the folder of a run
OUT = "--out PATH"  # the option that chooses another path


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """Return the cards in a folder that have their file next to them, sorted by name.

    Cards that are damaged, or whose file has changed, are left out.
    """
    cards = []
    for file in sorted(folder.glob("*.json")):
        try:
            card = read_json(file)
            # The file was deleted, or replaced by an export that was killed before it wrote its card.
            if hashlib.sha256(read_file(file.with_suffix(""))).hexdigest() != card["sha256"]:
                continue
            card_markdown([card])  # raises if a shown value is missing or has the wrong type
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
            continue  # a card of another program, or an edited one
        cards.append({**card, "file": file.with_suffix("").name})  # the file may have been renamed
    return cards


def write_summary(path: Path, written: Mapping[str, Any]) -> None:
    """Write a summary of the cards in a folder that have the net and the weights of a new card."""
    net, run = written["network"]["name"], written["metadata"]["run"]
    cards = [
        card
        for card in read_cards(path.parent)
        # Files of other weights may be in this folder, with their own scores and times.
        if card["network"]["name"] == net
        and card["metadata"].get("run", {}).get("weights_sha256") == run["weights_sha256"]
    ]
    write_output(path, card_markdown(cards), option=OUT)


def card_markdown(cards: Sequence[Mapping[str, Any]]) -> str:
    """Return the cards of one network as Markdown."""
    first = cards[0]
    network, metadata = first["network"], first["metadata"]
    multiply_adds = "unknown" if network["multiply_adds"] is None else f"{network['multiply_adds']:,}"
    lines = [
        f"# {as_text(network['name'])}: exports\n",
        f"{network['parameters']:,} parameters; {multiply_adds} multiply-adds for inputs "
        f"{_shapes(network['input_shapes'])}. Task: {as_text(metadata['task'])}, {len(metadata['classes'])} classes.\n",
    ]
    # about the metrics and the inputs, for example that a network is not a medical device
    notices = [*metadata["notices"], *metadata["preparation"].get("notices", ())]
    lines += [f"- {as_text(notice)}" for notice in notices]
    lines += ["\n## Files\n", *_files(cards), "\n## Scores\n", *_scores(cards), "\n## Differences of outputs\n"]
    lines += [*_differences(cards), "\n## Use\n\nInputs, in this order:\n"]
    for item in metadata["inputs"]:
        lines.append(f"- `{printable(str(item['name']))}` {_shapes({'': item['shape']})}, {as_text(item['dtype'])}")
    is_described = bool(metadata["preparation"])
    lines.append(
        f"\nClasses{', thresholds and the preparation of inputs' if is_described else ' and thresholds'} are in the "
        "metadata of the file, and under `metadata` in the JSON next to it."
        + ("" if is_described else " The preparation of inputs is not described; see the data of the recipe.")
    )
    return "\n".join(lines) + "\n"


def summary_rows(cards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row of texts for each file, with the titles first."""
    yield ("file", "precision", "gates", "bytes", "peak activations", "p50 (torch)", "p95 (torch)", "CPU (torch)")
    for card in cards:
        times, peak = card["latency"], card.get("peak_activation_bytes")
        yield (
            card["file"],
            str(card.get("precision")),
            "passed" if card["passed"] else "MISSED",
            f"{card['bytes']:,}",
            "unknown" if peak is None else format_bytes(peak, base=1024),
            *(
                f"{times[key]['export']:.2f} ({times[key]['torch']:.2f}) ms"
                for key in ("p50_ms", "p95_ms", "cpu_p50_ms")
            ),
        )


def _files(cards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _table(summary_rows(cards))
    times = cards[0]["latency"]
    machine = times["machine"]  # of the first file; others may be from another day
    yield (
        f"\nTimes are for one sample on one thread of {as_text(machine['processor'])} ({machine['cores']} cores, load "
        f"{machine['load']}), alternating with torch eager, {times['rounds']} rounds or more; CPU is the median "
        "without waiting for other programs. Peak activations are the peak memory of all values if the nodes run in "
        "their order."
    )
    # absent in cards of earlier versions
    notices = [f"- {as_text(card['file'])}: {as_text(notice)}" for card in cards for notice in card.get("notices", ())]
    yield from ("", *notices) if notices else ()


def _scores(cards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [("metric", "network", *(card["file"] for card in cards))]
    for metric, score in cards[0]["metric_gate"]["scores"].items():
        cells = []
        for of_file in (card["metric_gate"]["scores"].get(metric, {}) for card in cards):
            lost = of_file.get("points_lost")
            change = "undefined" if lost is None else f"{0.0 - lost:+.2f}"
            cells.append(f"{_number(of_file.get('export'))} ({change})")
        rows.append((metric, _number(score["network"]), *cells))
    yield from _table(rows)
    gate = cards[0]["metric_gate"]
    yield (
        f"\nOn {gate['samples']} samples of the {as_text(gate['split'])} split, with the thresholds of the network; "
        f"the change in points is in brackets. The gate allows a loss of {gate['points']:g} points."
    )


def _differences(cards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kinds = [*cards[0]["numeric_gate"]["largest_differences"]]
    rows = [("file", *kinds, "tolerance")]
    for card in cards:
        gate = card["numeric_gate"]
        limit = "none: measured only" if gate["tolerance"] is None else f"{gate['tolerance']:g}"
        rows.append((card["file"], *(_number(gate["largest_differences"].get(kind)) for kind in kinds), limit))
    yield from _table(rows)


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table of texts, with the titles first."""
    titles, *others = ([*map(as_text, row)] for row in rows)
    return table_lines(titles, others)


def _shapes(shapes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, shape))})".strip() for name, shape in shapes.items())


def _number(value: Any) -> str:
    return "undefined" if value is None else f"{value:.4g}"
