"""Parse HL7 aECG (AnnotatedECG): the sequences of its series, without derived series such as representative beats.

wfdb and pydicom do not read XML.
"""

from decimal import Decimal
from xml.etree.ElementTree import Element

import numpy as np

from kdkit import DataError
from kdkit.errors import first_line
from kdkit_ecg.leads import LEADS, standard_name
from kdkit_ecg.person import age_between, parse_sex
from kdkit_ecg.records.source import VOLTAGES
from kdkit_ecg.records.waveforms import Channel, EcgFile, Waveform, finite_number
from kdkit_ecg.utils.messages import clipped, shown

_TIMES = ("TIME_ABSOLUTE", "TIME_RELATIVE")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_ROUNDED = 1e-6  # relative error of an increment that was computed in float32


def parse_aecg(root: Element) -> EcgFile:
    """Return the waveforms of the only series of a file. Raises DataError."""
    series = root.findall("component/series")
    if len(series) != 1:
        codes = ", ".join(_code(element) or "without a code" for element in series)
        raise DataError(f"expected one series, got {len(series)}{codes and ': '}{clipped(codes)}")
    person = root.find(".//subjectDemographicPerson")
    age, sex = None, None
    if person is not None:
        sex = parse_sex(_attribute(person, "administrativeGenderCode", "code"))
        times = (f"effectiveTime/{part}" for part in ("low", "center"))
        dates = [_attribute(element, path, "value") for path in times for element in (root, series[0])]
        age = age_between(_attribute(person, "birthTime", "value"), next(filter(None, dates), ""))
    return EcgFile([_waveform(element) for element in series[0].findall("component/sequenceSet")], age, sex)


def _waveform(sequence_set: Element) -> Waveform:
    """Return the leads of a sequence set; all belong to its sequence of times."""
    sequences = sequence_set.findall("component/sequence")
    times = [sequence for sequence in sequences if _code(sequence) in _TIMES]
    if len(times) != 1:
        raise DataError(f"expected one sequence of times ({' or '.join(_TIMES)}) in a set, got {len(times)}")
    channels = tuple(channel for channel in map(_channel, sequences) if channel is not None)
    counts = {len(channel.steps) for channel in channels}
    if len(counts) > 1:
        raise DataError(f"expected leads with equal numbers of samples, got {', '.join(map(str, sorted(counts)))}")
    unit = _attribute(times[0], "value/increment", "unit")
    if unit not in _SECONDS:
        raise DataError(f"expected an increment of times in {', '.join(_SECONDS)}, got the unit {shown(unit)}")
    increment = _number(times[0], "value/increment") * _SECONDS[unit]
    if not increment > 0:
        raise DataError(f"expected an increment of times above 0, got {increment:g} s")
    rate = 1 / increment
    # An increment of few digits, such as 0.00391 s for 256 Hz, may be wrong in its last digit.
    digits = Decimal(_attribute(times[0], "value/increment", "value")).as_tuple()
    error = max(_ROUNDED, 10.0 ** int(digits.exponent) * _SECONDS[unit] / increment)
    whole = float(max(1, round(rate)))
    if abs(whole - rate) <= error * rate and not (4 * rate).is_integer():  # 16 ms are 62.5 Hz exactly
        rate = whole
    start = _attribute(times[0], "value/head", "value")
    return Waveform(start, rate, counts.pop() if counts else 0, channels)


def _channel(sequence: Element) -> Channel | None:
    """Return a lead, None for a sequence of times, or one without a unit of voltage. Raises DataError."""
    name = standard_name(_code(sequence))
    name = name if name in LEADS else name.removeprefix("MDC_ECG_LEAD_")
    units = [_attribute(sequence, f"value/{part}", "unit").lower() for part in ("scale", "origin")]
    if _code(sequence) in _TIMES or units[0] not in VOLTAGES:
        return None
    factor = _number(sequence, "value/scale") * VOLTAGES[units[0]]
    origin = 0.0
    if sequence.find("value/origin") is not None:
        origin = _number(sequence, "value/origin")
        if origin and units[1] not in VOLTAGES:
            raise DataError(f"expected the unit of the origin for lead {shown(name)}, got {shown(units[1])}")
    if not factor:
        raise DataError(f"expected a scale other than 0 for lead {shown(name)}")
    digits = (sequence.findtext("value/digits") or "").split()
    try:
        return Channel(name, np.array(digits, dtype=np.float64), factor, origin and origin * VOLTAGES[units[1]])
    except ValueError as error:
        raise DataError(f"the digits of lead {shown(name)} are not numbers: {first_line(error)}") from error


def _code(element: Element) -> str:
    return _attribute(element, "code", "code")


def _attribute(element: Element, path: str, name: str) -> str:
    child = element.find(path)
    return "" if child is None else child.get(name, "").strip()


def _number(element: Element, path: str) -> float:
    return finite_number(_attribute(element, path, "value"), path)
