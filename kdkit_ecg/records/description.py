"""Describe the preparation of records as JSON values, which are part of exported networks, and read it again."""

import math
from collections.abc import Collection, Mapping
from typing import Any, get_args

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.person import features_without
from kdkit_ecg.records.filters import FLAT, KAISER_BETA, ORDER, PADDING
from kdkit_ecg.records.preparation import Preparation, Resampling, Scaling

VERSION = 2  # of the description; increase it if a program that follows it would compute something else


def describe_preparation(
    preparation: Preparation, *, length: int, window: str, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Return how a record becomes the inputs of a network: facts, and the steps in order.

    length: of the window, in samples; window: its position. hidden: "age" and
    "sex" if networks do not get them. docs/export.md defines every step.
    """
    leads, rate, band, scaling = preparation.leads, preparation.rate, preparation.band, preparation.scaling
    steps: list[dict[str, Any]] = [
        {"step": "leads", "names": list(leads), "unit": "mV", "derive_limb_leads": True},
        {"step": "interpolate_invalid", "all_invalid": 0.0},
    ]
    if band is not None:
        steps.append(
            {
                "step": "bandpass",
                "low": band[0],
                "high": band[1],
                "filter": "butterworth",
                "order": ORDER,
                "form": "second-order sections",
                "direction": "forward and backward",
                "padding": "odd",
                "padding_samples": PADDING,  # at each end; at most the samples of the record minus one
            }
        )
    resample: dict[str, Any] = {"step": "resample", "rate": rate, "method": preparation.resampling}
    if preparation.resampling == "polyphase":  # the window of scipy.signal.resample_poly
        resample |= {"subtracted": "line from first to last sample", "window": "kaiser", "beta": KAISER_BETA}
        resample |= {"half_length": "10 * max(up, down)"}
    steps.append(resample)
    if scaling == "zscore":
        steps.append({"step": "zscore", "axis": "time", "flat_below": FLAT})
    steps.append({"step": "window", "length": length, "position": window, "padding": 0.0})
    return {
        "kind": "ecg",
        "version": VERSION,
        "leads": list(leads),
        "rate": rate,
        "length": length,
        "unit": "mV",
        "scaling": scaling,
        "band": None if band is None else list(band),
        "steps": steps,
        "person": {"input": "person", "features": list(features_without(hidden)), "unknown": 0.0},
        "notices": ["not a medical device: for research only, and not for diagnosis or treatment"],
    }


def read_description(description: Mapping[str, Any]) -> tuple[Preparation, int, tuple[str, ...]]:
    """Return the preparation that a description was made from, the samples of a window, and the person's features.

    Raises DataError for a description of anything but ECGs, and for a step that this version does not support.
    """
    kind = description.get("kind")
    if kind != "ecg":
        got = f"{kind!r}" if kind else "no description"
        raise DataError(
            f"expected a network whose inputs are described as ECGs, got {got}; run networks on other data in the "
            "runtime of the file, such as onnxruntime, and export those on ECGs from a data set of kdkit_ecg, with a "
            "view that describes its inputs, such as Leads"
        )
    try:
        steps = {step["step"]: step for step in description["steps"]}
        band = description["band"]
        preparation = Preparation(
            rate=float(description["rate"]),
            band=None if band is None else (float(band[0]), float(band[1])),
            resampling=steps["resample"]["method"],
            scaling=description["scaling"],
            leads=tuple(map(str, description["leads"])),
        )
        length, features = int(description["length"]), tuple(map(str, description["person"]["features"]))
        described = describe_preparation(
            preparation,
            length=length,
            window=steps["window"]["position"],
            hidden=[role for role in ("age", "sex") if f"{role} known" not in features],
        )
        if preparation.scaling not in get_args(Scaling) or preparation.resampling not in get_args(Resampling):
            raise ValueError(f"scaling {preparation.scaling!r}, resampling {preparation.resampling!r}")
        if not (0 < preparation.rate < math.inf):
            raise ValueError(f"rate {preparation.rate}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"the description of the inputs is damaged: {type(error).__name__}: {first_line(error)}; export again"
        ) from error
    # Facts and steps hold the same values. A step that this version does not write would be skipped silently.
    unknown = [key for key in ("version", "steps", "person") if description.get(key) != described[key]]
    if unknown or length < 1:
        raise DataError(
            f"this version of kdkit cannot follow the description of the inputs ({', '.join(unknown) or 'length'}, "
            f"version {description.get('version')!r}, here {VERSION}); export again with this version"
        )
    return preparation, length, features
