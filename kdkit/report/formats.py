"""Numbers and names as a report shows them."""

import math

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
_WORDS = {
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "iou": "IoU",
    "miou": "mIoU",
}


def plain(value: float | None) -> str:
    """Return the value of a metric."""
    if value is None or not math.isfinite(value):
        return DASH
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}").replace("-", MINUS)


def bounds(interval: tuple[float, float] | None) -> str:
    """Return the bounds of an interval, "" for None."""
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    return f"{plain(interval[0])} to {plain(interval[1])}"


def signed(value: float, *, points: bool) -> str:
    """Return a difference with its sign, in points of 0.01 or as it is."""
    if not math.isfinite(value):
        return DASH
    text = f"{100 * value:+.1f}" if points else f"{value:+.3g}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", MINUS)


def is_share(*values: float) -> bool:
    """Whether values may be shares, whose differences are given in points of 0.01."""
    return all(not math.isfinite(value) or abs(value) <= 1 for value in values)


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def tick(value: float) -> str:
    """Return a number as an axis shows it."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    else:
        text = f"{value:.4g}"
    return text.replace("-", MINUS)


def count(value: int | None) -> str:
    """Return a whole number."""
    return DASH if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value} B"


def duration(seconds: float) -> str:
    """Return a time."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def metric_title(name: str) -> str:
    """Return the name of a metric as a reader knows it: "macro_f1" as "Macro F1"."""
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]
