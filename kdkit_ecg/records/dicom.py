"""Parse ECGs in DICOM files (waveform storage), which pydicom reads.

The samples are converted here: pydicom's multiplex_array treats padding as samples, and all files as little-endian.
"""

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError, RecipeError
from kdkit_ecg.leads import LEADS, standard_name
from kdkit_ecg.person import age_between, parse_age, parse_sex
from kdkit_ecg.records.source import VOLTAGES
from kdkit_ecg.records.waveforms import Channel, EcgFile, Waveform, WaveformSource, open_waveform
from kdkit_ecg.utils.messages import clipped, shown
from kdkit_ecg.utils.record_files import is_dicom

# The leads, by their number in the codes of CID 3001, "2:1" of MDC and "5.6.3-9-1" of SCPECG.
_LEAD_CODE = re.compile(r"(?:2:|5\.6\.3-9-)([0-9]{1,3})")
_LEAD_NUMBERS: Mapping[int, str] = MappingProxyType(
    {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"}
    | {number: f"V{number - 2}" for number in range(3, 10)}
    | {number: f"V{number - 8}R" for number in range(10, 16)}
    | {16: "X", 17: "Y", 18: "Z", 65: "-aVR", 66: "V8", 67: "V9"}
)
# The name in a meaning such as "Lead I (Einthoven)" or "aVR, augmented voltage, right".
_NAME = re.compile(r"[^(,]*[^(,\s]")

# Sample formats; MB and AB, companded bytes of sound, do not occur in an ECG.
_SAMPLES = MappingProxyType({"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"})

# Everything that is read: no name and no number of a patient.
_TAGS = ("SOPClassUID", "PatientSex", "PatientAge", "PatientBirthDate", "AcquisitionDateTime", "WaveformSequence")


def open_dicom(path: Path) -> WaveformSource:
    """Return the record of a DICOM file: the leads of its original samples, without derived ones such as a median beat.

    Channels whose unit is not a unit of voltage are not read. Raises DataError, which names the file, if it cannot be
    read, and RecipeError without pydicom.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise RecipeError(f"{path} needs pydicom: pip install 'kdkit[dicom]'")
    return open_waveform(path, parse_dicom)


def parse_dicom(path: Path) -> EcgFile:
    """Return the original waveforms of a file. Raises DataError, and the exceptions of pydicom for a damaged file."""
    import pydicom

    if not is_dicom(path):
        raise DataError("it is not a DICOM file, which has the letters DICM after 128 bytes")
    if pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID.is_deflated:  # of any size once inflated
        raise DataError("it is compressed (deflated); convert it to explicit VR little endian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that do not follow the standard
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        groups = dataset.get("WaveformSequence") or ()
        original = [group for group in groups if group.get("WaveformOriginality") == "ORIGINAL"]
        if not original:
            kinds = [
                f"{group.get('WaveformOriginality')} {group.get('MultiplexGroupLabel', '')}".strip() for group in groups
            ]
            name = getattr(dataset.get("SOPClassUID"), "name", "unknown")
            raise DataError(
                f"expected an ECG with a waveform of original samples, got {shown(str(name))} with "
                f"{clipped(', '.join(kinds)) or 'no waveform'}"
            )
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        waveforms = [_waveform(group, order) for group in original]
        born, recorded = (str(dataset.get(key, ""))[:8] for key in ("PatientBirthDate", "AcquisitionDateTime"))
        age = parse_age(str(dataset.get("PatientAge", "")).strip())
        age = age_between(born, recorded) if age is None else age
        return EcgFile(waveforms, age, parse_sex(str(dataset.get("PatientSex", ""))))


def _waveform(group: Any, order: str) -> Waveform:
    """Return a multiplex group. order: of its bytes, "<" or ">"."""
    count, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    definitions = group.ChannelDefinitionSequence
    if len(definitions) != count:
        raise DataError(f"expected {count} definitions of channels, got {len(definitions)}")
    form, bits = str(group.WaveformSampleInterpretation), int(group.WaveformBitsAllocated)
    dtype = np.dtype(order + _SAMPLES.get(form, "V1"))
    if form not in _SAMPLES or 8 * dtype.itemsize != bits:
        raise DataError(f"expected samples of one of the forms {', '.join(_SAMPLES)}, got {shown(form)} of {bits} bits")
    needed = count * samples * dtype.itemsize
    if len(group.WaveformData) < needed:
        raise DataError(f"expected {needed:,} bytes of samples, got {len(group.WaveformData):,}")
    steps = np.frombuffer(group.WaveformData, dtype, count * samples).reshape(samples, count)
    padding = group.get("WaveformPaddingValue")
    invalid = np.frombuffer(padding, dtype, 1)[0] if isinstance(padding, bytes) else padding
    rate = float(group.SamplingFrequency)
    channels, skews = [], []
    for position, definition in enumerate(definitions):
        channel = _channel(definition, steps[:, position], invalid, f"channel {position + 1}")
        if channel is None:
            continue
        channels.append(channel)
        skews.append(float(definition.get("ChannelSampleSkew") or rate * float(definition.get("ChannelTimeSkew") or 0)))
    if channels and max(skews) - min(skews) >= 1:
        raise DataError(f"expected leads that start together, got skews of {min(skews):g} to {max(skews):g} samples")
    start = f"{float(group.get('MultiplexGroupTimeOffset') or 0):g} ms"
    return Waveform(start, rate, samples, tuple(channels))


def _channel(definition: Any, steps: NDArray[Any], invalid: Any, name: str) -> Channel | None:
    """Return a channel, None if its unit is not a unit of voltage. name: used if the definition has none."""
    units = definition.get("ChannelSensitivityUnitsSequence") or ()
    unit = str(units[0].get("CodeValue", "")).strip().lower() if units else ""
    sensitivity = definition.get("ChannelSensitivity")
    if unit not in VOLTAGES or sensitivity is None:
        return None
    correction = definition.get("ChannelSensitivityCorrectionFactor")
    factor = float(sensitivity) * (1.0 if correction is None else float(correction)) * VOLTAGES[unit]
    baseline = float(definition.get("ChannelBaseline") or 0) * VOLTAGES[unit]
    lead = _lead(definition) or name
    if not (factor and np.isfinite([factor, baseline]).all()):
        raise DataError(
            f"expected a sensitivity of {lead} that is not 0 and a finite baseline, got {factor:g} mV and "
            f"{baseline:g} mV"
        )
    return Channel(lead, steps, factor, baseline, invalid)


def _lead(definition: Any) -> str:
    """Return the name of a channel by its code, otherwise by the code's meaning or its label; "" without."""
    sources: Sequence[Any] = definition.get("ChannelSourceSequence") or ()
    code, meaning = (
        (str(sources[0].get(key, "")).strip() for key in ("CodeValue", "CodeMeaning")) if sources else ("", "")
    )
    number = _LEAD_CODE.fullmatch(code)
    if number and int(number[1]) in _LEAD_NUMBERS:
        return _LEAD_NUMBERS[int(number[1])]
    texts = [text for text in (meaning, str(definition.get("ChannelLabel", "")).strip()) if text]
    names = [standard_name(match[0]) for match in map(_NAME.match, texts) if match]
    return next((name for name in names if name in LEADS), names[0] if names else "")
