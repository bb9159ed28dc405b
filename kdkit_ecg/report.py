"""Show ECGs in a report: the records that the student got most wrong, on electrocardiograph paper.

The paper has squares of 1 mm and of 5 mm; it runs at 25 mm/s, and 10 mm are 1 mV (AHA recommendations, Kligfield et al.
2007). Three rows show four columns of leads, each a quarter of the record, and a fourth row shows lead II throughout.
"""

from collections.abc import Iterator
from importlib import resources

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from kdkit.report import Report, Section
from kdkit.report.formats import DASH
from kdkit.report.runs import ReportedRun
from kdkit.utils.printable import printable
from kdkit_ecg.datasets.signal_split import IN_MV, RATE, SIGNAL
from kdkit_ecg.leads import LEADS

_MM_PER_SECOND, _MM_PER_MV = 25.0, 10.0
_ROW = 26.0  # mm from one row to the next
_MARGIN = 3.0  # mm above the first row and below the last one, for the highest peaks
_LEFT = 10.0  # mm, for the calibration pulse
_HIGHEST = 15.0  # mm from the middle of a row; a signal beyond it is cut off
_POINTS = 4000  # at most, of a line over the whole paper
_LAYOUT = ("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6")
_RHYTHM = "II"
_CLEAR = 0.5  # the lowest probability at which a class is shown

# The squares, shared by all papers.
_GRID = Markup(
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<pattern id="ecg-fine" width="1" height="1" patternUnits="userSpaceOnUse">'
    '<path d="M1 0H0V1" fill="none" stroke="var(--ecg-fine)" stroke-width=".1"/></pattern>'
    '<pattern id="ecg-coarse" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<path d="M5 0H0V5" fill="none" stroke="var(--ecg-coarse)" stroke-width=".2"/></pattern></defs></svg>'
)

Signal = NDArray[np.float32]


def ecg_sections(report: Report) -> list[Section]:
    """Return a section with the records of the runs that saved some, or none."""
    cards = [card for run in report.runs for card in _cards(run, several=len(report.runs) > 1)]
    if not cards:
        return []
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    lead = (
        "The records of the test split that the student got most wrong, the worst first: 25 mm/s, and 10 mm/mV if the "
        "signals are in mV. Shown are classes that a record has, or that a network gives a probability above 50 %."
    )
    html = Markup('<style>{}</style>{}<p class="lead">{}</p>{}').format(
        Markup(style), _GRID, lead, Markup("").join(cards)
    )
    return [Section("ECGs", html)]


def _cards(run: ReportedRun, *, several: bool) -> Iterator[Markup]:
    """Yield a figure for each record that a run saved. several: whether to name the run."""
    if not {SIGNAL, RATE, IN_MV} <= run.samples.keys():
        return
    signal, rate, scale = (run.samples[name] for name in (SIGNAL, RATE, IN_MV))
    is_ecg = signal.ndim == 3 and signal.shape[1] == len(LEADS) <= signal.shape[2] and rate.ndim == scale.ndim == 1
    if not is_ecg or not ((rate >= 1) & rate.isfinite()).all():  # nothing in a run folder is trusted
        return
    signals, rates, in_mv = signal.float().numpy(), rate.tolist(), scale.tolist()
    for number, id in enumerate(run.samples["ids"].tolist()):
        # Names come from data, like those of classes: a control character must not reach the page.
        name = printable(run.sample_names[number]) if run.sample_names else str(id)
        title = f"Record {name}, {printable(run.label)}" if several else f"Record {name}"
        yield Markup(
            '<figure class="ecg"><figcaption><b>{}</b> <span>{:g} s at {:g} Hz{}</span></figcaption>'
            '<div class="scroll">{}</div>{}</figure>'
        ).format(
            title,
            signals.shape[2] / rates[number],
            rates[number],
            "" if in_mv[number] else "; scaled to variance 1 by lead, 10 mm for 4 standard deviations",
            paper(signals[number] if in_mv[number] else signals[number] / 4, rates[number], pulse=bool(in_mv[number])),
            class_table(run, id),
        )


def paper(signal: Signal, rate: float, *, pulse: bool = True) -> Markup:
    """Return the drawing of a record, (12, time) in mV, at a rate in Hz. pulse: draw the calibration of 1 mV."""
    seconds = signal.shape[1] / rate
    width, height = _LEFT + _MM_PER_SECOND * seconds, _ROW * (len(_LAYOUT) + 1) + 2 * _MARGIN
    parts: list[Markup] = []
    for row, leads in enumerate((*_LAYOUT, (_RHYTHM,))):
        middle = _MARGIN + _ROW * (row + 0.5)
        if pulse:
            parts.append(Markup('<path d="M2 {0:g}h1v-10h5v10h1"/>').format(middle))
        size = signal.shape[1] // len(leads)
        for column, lead in enumerate(leads):
            part = signal[LEADS.index(lead), column * size : (column + 1) * size]
            if np.isnan(part).all():  # a lead that the data does not have
                continue
            left = _LEFT + _MM_PER_SECOND * column * size / rate
            parts.append(Markup('<path d="{}"/>').format(_line(part, rate, left, middle)))
            parts.append(Markup('<text x="{:g}" y="{:g}">{}</text>').format(left + 1, middle - 8.5, lead))
    return Markup(
        '<svg viewBox="0 0 {0:g} {1:g}" style="width:{0:g}mm" role="img" aria-label="ECG of twelve leads">'
        '<rect class="fine" width="{0:g}" height="{1:g}"/><rect class="coarse" width="{0:g}" height="{1:g}"/>{2}</svg>'
    ).format(width, height, Markup("").join(parts))


def _line(part: Signal, rate: float, left: float, middle: float) -> str:
    """Return the path of a part of a lead, (time,) in mV; long parts keep the lowest and highest of neighbours."""
    limit = _HIGHEST / _MM_PER_MV
    values = _MM_PER_MV * np.clip(np.nan_to_num(part.astype(np.float64)), -limit, limit)
    positions = np.arange(len(part))
    if len(part) > _POINTS:
        step = 2 * -(-len(part) // _POINTS)
        blocks = values[: len(values) // step * step].reshape(-1, step)
        extremes = np.sort(np.stack([blocks.argmin(1), blocks.argmax(1)], 1), 1)
        positions = (extremes + step * np.arange(len(blocks))[:, None]).ravel()
    x = left + _MM_PER_SECOND * positions / rate
    return "M" + "L".join(f"{across:.2f} {middle - up:.2f}" for across, up in zip(x, values[positions], strict=True))


def class_table(run: ReportedRun, id: int) -> Markup:
    """Return the table of a record's classes, with the probability of each by every network that has it."""
    labels: dict[str, bool | None] = {}  # None if unknown
    columns: dict[str, dict[str, float]] = {}  # net -> class -> probability; nets may lack classes of the data
    for net in run.nets:
        sample = run.sample(net, id)
        if (
            sample is None
            or sample.outputs.ndim != 1
            or (not sample.labels.ndim and sample.labels.dtype.kind not in "iu")
        ):
            continue
        # Neither overflows. If a record has exactly one class, its label is the number of the class.
        if sample.labels.ndim:
            true, probabilities = sample.labels, np.exp(-np.logaddexp(0, -sample.outputs))
        else:
            true = np.equal(np.arange(len(sample.outputs)), sample.labels)
            probabilities = np.exp(sample.outputs - np.logaddexp.reduce(sample.outputs))
        columns[net] = dict(zip(sample.classes, probabilities.tolist(), strict=True))
        known = [None if np.isnan(label) else label > 0 for label in true.tolist()]
        labels |= zip(sample.classes, known, strict=True)
    if not columns:
        return Markup("")
    words = {True: "yes", False: "no", None: "unknown"}
    rows = []
    for name, is_true in labels.items():
        if not (is_true or any(by_class.get(name, 0) >= _CLEAR for by_class in columns.values())):
            continue
        cells = [
            Markup('<td class="number {}">{:.0f} %</td>').format(
                "" if is_true is None else "right" if (by_class[name] >= _CLEAR) == is_true else "wrong",
                100 * by_class[name],
            )
            if name in by_class
            else Markup('<td class="number">{}</td>').format(DASH)
            for by_class in columns.values()
        ]
        rows.append(
            Markup('<tr><th scope="row">{}</th><td>{}</td>{}</tr>').format(
                printable(name), words[is_true], Markup("").join(cells)
            )
        )
    if not rows:
        return Markup('<p class="note">The record has none of the classes, and no network gives one above 50 %.</p>')
    head = Markup("").join(Markup('<th scope="col" class="number">{}</th>').format(printable(net)) for net in columns)
    return Markup(
        '<div class="scroll"><table><thead><tr><th scope="col">class</th><th scope="col">labelled</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, Markup("").join(rows))
