"""Parse the XML of GE MUSE (RestingECG): its rhythm waveform, without the median beats."""

import base64
import zlib
from functools import partial
from types import MappingProxyType
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.leads import standard_name
from kdkit_ecg.records.header import parse_age
from kdkit_ecg.records.signal_lines import clipped, shown
from kdkit_ecg.records.source import Sex
from kdkit_ecg.records.waveforms import Channel, EcgFile, Waveform

_MV = MappingProxyType({"MICROVOLTS": 1e-3, "MILLIVOLTS": 1.0})  # by unit
_SAMPLE_BYTES = 2
# Elements of a lead whose meaning other than 0 is not public.
_ZERO = ("LeadTimeOffset", "LeadOffsetFirstSample", "FirstSampleBaseline")


def parse_muse(root: Element) -> EcgFile:
    """Return the rhythm waveform of a file. Raises DataError."""
    waveforms = root.findall("Waveform")
    types = [_text(waveform, "WaveformType") for waveform in waveforms]
    rhythms = [waveform for waveform, kind in zip(waveforms, types, strict=True) if kind.lower() == "rhythm"]
    if len(rhythms) != 1:
        raise DataError(f"expected one waveform of type Rhythm, got {clipped(', '.join(types)) or 'no waveform'}")
    sexes: dict[str, Sex] = {"FEMALE": "female", "MALE": "male"}
    age = _text(root, "PatientDemographics/PatientAge")
    unit = _text(root, "PatientDemographics/AgeUnits")
    return EcgFile(
        [_waveform(rhythms[0])],
        parse_age(f"{age} {unit.lower()}".strip()),
        sexes.get(_text(root, "PatientDemographics/Gender").upper()),
    )


def _waveform(rhythm: Element) -> Waveform:
    leads = [_lead(data) for data in rhythm.findall("LeadData")]
    counts = {len(steps) for _, steps, _ in leads}
    if len(counts) != 1:
        raise DataError(f"expected leads with one number of samples, got {sorted(counts) or 'no lead'}")
    exponent = _number(rhythm, "SampleExponent") if rhythm.find("SampleExponent") is not None else 0.0
    channels = tuple(Channel(name, partial(_values, steps, factor)) for name, steps, factor in leads)
    return Waveform("0 s", _number(rhythm, "SampleBase") * 10**exponent, counts.pop(), channels)


def _lead(data: Element) -> tuple[str, NDArray[np.int16], float]:
    """Return the name of a lead, its samples, and the mV of a step."""
    name = standard_name(_text(data, "LeadID"))
    unit = _text(data, "LeadAmplitudeUnits")
    if unit.upper() not in _MV:
        raise DataError(f"expected the unit {' or '.join(_MV)} of lead {shown(name)}, got {shown(unit)}")
    for element in _ZERO:
        if data.find(element) is not None and _number(data, element) != 0:
            raise DataError(f"expected a {element} of 0 of lead {shown(name)}, got {shown(_text(data, element))}")
    try:
        stored = base64.b64decode("".join(_text(data, "WaveFormData").split()), validate=True)
    except ValueError as error:
        raise DataError(f"the samples of lead {shown(name)} are not in base64: {error}") from error
    declared = _number(data, "LeadSampleCountTotal")
    if len(stored) != declared * _SAMPLE_BYTES:
        raise DataError(
            f"expected {declared:g} samples of {_SAMPLE_BYTES} bytes of lead {shown(name)}, got {len(stored):,} bytes"
        )
    checksum = _number(data, "LeadDataCRC32") if _text(data, "LeadDataCRC32") else 0.0  # 0 means unknown
    if checksum not in (0, zlib.crc32(stored)):
        raise DataError(f"the samples of lead {shown(name)} do not match their checksum; export the record again")
    factor = _number(data, "LeadAmplitudeUnitsPerBit") * _MV[unit.upper()]
    if not factor:
        raise DataError(f"expected LeadAmplitudeUnitsPerBit other than 0 of lead {shown(name)}")
    return name, np.frombuffer(stored, "<i2"), factor


def _values(steps: NDArray[np.int16], factor: float) -> NDArray[np.float64]:
    """Return samples in mV, (time,)."""
    return steps * np.float64(factor)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: Element, path: str) -> float:
    """Return the finite number in an element. Raises DataError."""
    try:
        number = float(_text(element, path))
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise DataError(f"expected a number in {path}, got {shown(_text(element, path))}")
    return number
