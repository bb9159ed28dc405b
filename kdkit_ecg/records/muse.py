"""Parse the XML of GE MUSE (RestingECG): its rhythm waveform, without the median beats.

wfdb and pydicom do not read XML.
"""

import base64
import zlib
from types import MappingProxyType
from xml.etree.ElementTree import Element

import numpy as np

from kdkit import DataError
from kdkit_ecg.leads import standard_name
from kdkit_ecg.person import parse_age, parse_sex
from kdkit_ecg.records.waveforms import Channel, EcgFile, Waveform, finite_number
from kdkit_ecg.utils.messages import clipped, shown

_MV = MappingProxyType({"MICROVOLTS": 1e-3, "MILLIVOLTS": 1.0})  # by unit
_SAMPLE_BYTES = 2
# Elements of a lead that must be 0, because the meaning of other values is not public.
_ZERO = ("LeadTimeOffset", "LeadOffsetFirstSample", "FirstSampleBaseline")


def parse_muse(root: Element) -> EcgFile:
    """Return the rhythm waveform of a file. Raises DataError."""
    waveforms = root.findall("Waveform")
    types = [_text(waveform, "WaveformType") for waveform in waveforms]
    rhythms = [waveform for waveform, kind in zip(waveforms, types, strict=True) if kind.lower() == "rhythm"]
    if len(rhythms) != 1:
        raise DataError(f"expected one waveform of type Rhythm, got {clipped(', '.join(types)) or 'no waveform'}")
    channels = tuple(map(_channel, rhythms[0].findall("LeadData")))
    counts = {len(channel.steps) for channel in channels}
    if len(counts) != 1:
        raise DataError(f"expected leads with equal numbers of samples, got {sorted(counts) or 'no lead'}")
    exponent = _number(rhythms[0], "SampleExponent") if rhythms[0].find("SampleExponent") is not None else 0.0
    waveform = Waveform("0 s", _number(rhythms[0], "SampleBase") * 10**exponent, counts.pop(), channels)
    age, unit = (_text(root, f"PatientDemographics/{element}") for element in ("PatientAge", "AgeUnits"))
    sex = parse_sex(_text(root, "PatientDemographics/Gender"))
    return EcgFile([waveform], parse_age(f"{age} {unit.lower()}".strip()), sex)


def _channel(data: Element) -> Channel:
    """Return a lead, after comparing its samples with their number and checksum. Raises DataError."""
    name = standard_name(_text(data, "LeadID"))
    unit = _text(data, "LeadAmplitudeUnits")
    if unit.upper() not in _MV:
        raise DataError(f"expected the unit {' or '.join(_MV)} for lead {shown(name)}, got {shown(unit)}")
    for element in _ZERO:
        if data.find(element) is not None and _number(data, element) != 0:
            raise DataError(f"expected a {element} of 0 for lead {shown(name)}, got {shown(_text(data, element))}")
    try:
        stored = base64.b64decode("".join(_text(data, "WaveFormData").split()), validate=True)
    except ValueError as error:
        raise DataError(f"the samples of lead {shown(name)} are not in base64: {error}") from error
    declared = _number(data, "LeadSampleCountTotal")
    if len(stored) != declared * _SAMPLE_BYTES:
        raise DataError(
            f"expected {declared:g} samples of {_SAMPLE_BYTES} bytes for lead {shown(name)}, got {len(stored):,} bytes"
        )
    checksum = _number(data, "LeadDataCRC32") if _text(data, "LeadDataCRC32") else 0.0  # 0 means unknown
    if checksum not in (0, zlib.crc32(stored)):
        raise DataError(f"the samples of lead {shown(name)} do not match their checksum; export the record again")
    factor = _number(data, "LeadAmplitudeUnitsPerBit") * _MV[unit.upper()]
    if not factor:
        raise DataError(f"expected LeadAmplitudeUnitsPerBit other than 0 for lead {shown(name)}")
    return Channel(name, np.frombuffer(stored, "<i2"), factor)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: Element, path: str) -> float:
    return finite_number(_text(element, path), path)
