"""Format numbers and names for a report."""

import math

from kdkit.utils.reprs import format_bytes, format_count

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
_WORDS = {
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "mrr": "MRR",
    "ndcg": "NDCG",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "iou": "IoU",
    "map": "mAP",
    "miou": "mIoU",
    # of users
    "rmse": "RMSE",
    "mape": "MAPE",
    "smape": "sMAPE",
    "mase": "MASE",
    "crps": "CRPS",
    "l1": "L1",
    "l2": "L2",
}


def plain(value: float | None) -> str:
    """Return the value of a metric."""
    if value is None or not math.isfinite(value):
        return DASH
    # Most metrics are shares; errors of regressions may have any size.
    return (f"{value:.3f}" if value == 0 or 5e-4 <= abs(value) < 100 else f"{value:.4g}").replace("-", MINUS)


def bounds(interval: tuple[float, float] | None) -> str:
    """Return the bounds of an interval, "" for None."""
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    return f"{plain(interval[0])} to {plain(interval[1])}"


def signed(value: float, *, points: bool) -> str:
    """Return a difference with its sign, in points of 0.01 or unscaled."""
    if not math.isfinite(value):
        return DASH
    # One digit for points: with a few hundred samples, more would be noise.
    text = f"{100 * value:+.1f}" if points else f"{value:+.3g}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", MINUS)


def signed_bounds(interval: tuple[float, float], *, points: bool) -> str:
    """Return the bounds of the interval of a difference."""
    return " to ".join(signed(bound, points=points) for bound in interval)


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def tick(value: float) -> str:
    """Return a number for an axis."""
    # The ticks of an axis are round numbers, which need all of their digits; a single value is not.
    digits = 6 if math.isclose(value, float(f"{value:.6g}"), rel_tol=1e-9) else 4
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def count(value: int | None) -> str:
    """Return a whole number."""
    return DASH if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Return a number of bytes."""
    return DASH if value is None else format_bytes(value)


def short(value: int | None) -> str:
    """Return a large whole number with three digits."""
    return DASH if value is None else format_count(value)


def moment(seconds: float | None) -> str:
    """Return a short time."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def ratio(value: float | None, reference: float | None) -> str:
    """Return a value as a multiple of a reference; "" if it is unknown or they are equal."""
    if not value or not reference or value == reference:
        return ""
    times = value / reference
    # Enough digits to distinguish 0.98 from 1, and fewer for large ratios.
    digits = 0 if times >= 10 else 1 if times >= 1.95 else 2
    return f"{times:,.{digits}f}{TIMES}"


def duration(seconds: float) -> str:
    """Return a time."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    # At 90, so that neither "1 min" nor "1 h" hides half of the time.
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def metric_title(name: str) -> str:
    """Return the readable name of a metric: "Macro F1" for "macro_f1", and "mAP 50" for "map_50"."""
    words = name.split("_")
    title = " ".join(_WORDS.get(word, word) for word in words)
    return title if words[0] in _WORDS else title[:1].upper() + title[1:]
