"""ECGs in DICOM and XML files are read with their units, and refused with the reason if they are something else."""

import re

import numpy as np
import pydicom
import pytest

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.open_file import open_file
from tests.helpers.hospital_files import aecg_xml, dicom_group, muse_xml, write_dicom

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
STEPS = np.random.default_rng(0).integers(-800, 800, (8, 200))


def refusal(path):
    with pytest.raises(DataError, match=path.name) as refused:
        open_file(path)[0].read()
    return str(refused.value)


@pytest.fixture
def dicom(tmp_path):
    """Return a function that writes groups, or one made of these elements of its channels, and returns the path."""

    def write(groups=None, **elements):
        channel = {name: elements.pop(name) for name in list(elements) if name.startswith("Channel")}
        if groups is None:
            groups = [dicom_group(STEPS, EIGHT, 500, **channel)]
        write_dicom(tmp_path / "a.dcm", groups, **elements)
        return tmp_path / "a.dcm"

    return write


def test_a_dicom_file_gives_signal_age_and_sex(dicom):
    [source] = open_file(dicom(PatientAge="071Y", PatientSex="F"))
    assert (source.leads, source.rate, source.samples, source.name) == (EIGHT, 500, 200, "a")
    record = source.read()
    assert (record.age, record.sex, record.leads, record.normalised) == (71, "female", LEADS, False)
    assert np.allclose(record.signal[[0, 1, *range(6, 12)]], STEPS / 1000, atol=1e-6)
    assert np.allclose(record.signal[2], (STEPS[1] - STEPS[0]) / 1000, atol=1e-6)
    [source] = open_file(dicom(PatientBirthDate="19500101", AcquisitionDateTime="20210101120000"))
    assert (source.age, source.sex) == (pytest.approx(71, abs=0.01), None)
    [source] = open_file(dicom(PatientAge="", PatientBirthDate=""))
    assert source.age is None


@pytest.mark.parametrize(
    ("elements", "factor", "baseline"),
    [
        ({"ChannelSensitivity": "4.88"}, 4.88e-3, 0),
        ({"ChannelSensitivity": "2", "ChannelSensitivityCorrectionFactor": "0.5", "ChannelBaseline": "100"}, 1e-3, 0.1),
        ({"ChannelSensitivity": "0.005", "ChannelSensitivityUnitsSequence": "mV", "ChannelBaseline": "1"}, 5e-3, 1),
        ({"ChannelSensitivity": "1", "ChannelSensitivityUnitsSequence": "V"}, 1e3, 0),
    ],
)
def test_dicom_steps_become_mv_by_sensitivity_correction_and_baseline(dicom, elements, factor, baseline):
    [source] = open_file(dicom(**elements))
    assert np.allclose(source.read_leads(), STEPS * factor + baseline, rtol=1e-12)


def test_dicom_samples_of_any_integer_and_order_of_bytes_are_read(dicom):
    for form, dtype, shift in (("US", "<u2", 1000), ("SL", "<i4", 0), ("UL", "<u4", 1000), ("SS", ">i2", 0)):
        group = dicom_group(STEPS, EIGHT, 500, ChannelBaseline=str(-shift))
        group.WaveformSampleInterpretation, group.WaveformBitsAllocated = form, 8 * np.dtype(dtype).itemsize
        group.WaveformData = np.ascontiguousarray(STEPS.T + shift, dtype).tobytes()
        group.WaveformPaddingValue = np.array(STEPS[0, 3] + shift, dtype).tobytes()
        syntax = pydicom.uid.ExplicitVRBigEndian if dtype[0] == ">" else pydicom.uid.ExplicitVRLittleEndian
        [source] = open_file(dicom([group], syntax=syntax))
        expected = np.where(STEPS[0, 3] == STEPS, np.nan, STEPS / 1000)
        assert np.allclose(source.read_leads(), expected, equal_nan=True)


def test_leads_in_several_dicom_groups_of_one_time_are_one_record(dicom):
    groups = [dicom_group(STEPS[start : start + 4], EIGHT[start : start + 4], 500) for start in (0, 4)]
    strip = dicom_group(np.tile(STEPS[1:2], 4), EIGHT[1:2], 500)
    [source] = open_file(dicom([*groups, strip]))
    assert (source.leads, source.samples) == (EIGHT, 200)
    later = [
        dicom_group(STEPS[start : start + 4], EIGHT[start : start + 4], 500, offset=625 * start) for start in (0, 4)
    ]
    assert "expected one waveform with all leads, got I, II, V1, V2 for 0.4 s from 0 ms; V3" in refusal(dicom(later))
    twice = [dicom_group(STEPS, EIGHT, 500, offset=offset) for offset in (0, 400)]
    assert "expected one waveform with all leads, got I, II" in refusal(dicom(twice))
    assert "expected every lead once" in refusal(dicom([groups[0], groups[0]]))


def test_a_dicom_channel_without_a_unit_of_voltage_is_not_read(dicom):
    pressure = dicom_group(STEPS[:1], ("Aorta",), 500, ChannelSensitivityUnitsSequence="mm[Hg]")
    [source] = open_file(dicom([dicom_group(STEPS, EIGHT, 500), pressure], sop_class="HemodynamicWaveformStorage"))
    assert source.leads == EIGHT
    assert "none in a unit of voltage" in refusal(dicom([pressure]))
    assert "not 0 and a finite baseline, got 0 mV and 0 mV" in refusal(dicom(ChannelSensitivity="0"))


def test_a_dicom_lead_without_a_known_code_has_the_name_of_its_meaning_or_label(dicom):
    group = dicom_group(STEPS[:5], EIGHT[:5], 500)
    meanings = ["Lead I (Einthoven)", "aVR, augmented voltage, right", "Unspecified lead", "MLII", ""]
    names = zip(meanings, [None, None, "V3", None, None], strict=True)
    for definition, (meaning, label) in zip(group.ChannelDefinitionSequence, names, strict=True):
        definition.ChannelSourceSequence[0].CodeValue = "X1"
        definition.ChannelSourceSequence[0].CodeMeaning = meaning
        if label:
            definition.ChannelLabel = label
    [source] = open_file(dicom([group]))
    assert source.leads == ("I", "aVR", "V3", "MLII", "channel 5")


def test_other_dicom_files_are_refused_with_their_kind(dicom, tmp_path):
    derived = dicom_group(STEPS, EIGHT, 500, originality="DERIVED")
    assert "got '12-lead ECG Waveform Storage' with DERIVED MEDIAN BEAT" in refusal(dicom([derived]))
    image = refusal(dicom([], sop_class="CTImageStorage"))
    assert "expected an ECG with a waveform of original samples, got 'CT Image Storage' with no waveform" in image
    deflated = refusal(dicom(syntax=pydicom.uid.DeflatedExplicitVRLittleEndian))
    assert "it is compressed (deflated); convert it" in deflated
    group = dicom_group(STEPS, EIGHT, 500)
    group.WaveformData = group.WaveformData[:-2]
    assert "expected 3,200 bytes of samples, got 3,198" in refusal(dicom([group]))
    group = dicom_group(STEPS, EIGHT, 500)
    group.WaveformSampleInterpretation = "MB"
    assert "expected samples of one of the forms SB, UB, SS, US, SL, UL, got 'MB' of 16 bits" in refusal(dicom([group]))
    group = dicom_group(STEPS, EIGHT, 500)
    group.ChannelDefinitionSequence[3].ChannelSampleSkew = "2"
    assert "leads that start together, got skews of 0 to 2 samples" in refusal(dicom([group]))
    group = dicom_group(STEPS, EIGHT, 0)
    assert "expected a rate and samples above 0, got 0 Hz and 200 samples" in refusal(dicom([group]))
    (tmp_path / "b.dcm").write_bytes(b"no DICOM" * 100)
    assert "cannot be read: it is not a DICOM file, which has the letters DICM" in refusal(tmp_path / "b.dcm")


@pytest.fixture
def xml(tmp_path):
    def write(text, *changes, encoding="latin-1"):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "a.xml").write_text(text, encoding=encoding)
        return tmp_path / "a.xml"

    return write


def test_the_rhythm_of_a_muse_file_is_read(xml):
    [source] = open_file(xml(muse_xml(STEPS, EIGHT, 500)))
    assert (source.leads, source.rate, source.samples, source.age, source.sex) == (EIGHT, 500, 200, 71, "female")
    assert source.read().leads == LEADS
    assert np.allclose(source.read_leads(), STEPS / 1000)
    coarse = xml(muse_xml(STEPS, EIGHT, 5), ("PerBit>1<", "PerBit>4.88<"), ("Exponent>0<", "Exponent>2<"))
    [source] = open_file(coarse)
    assert source.rate == 500
    assert np.allclose(source.read_leads(), STEPS * 4.88e-3)
    [source] = open_file(xml(muse_xml(STEPS, EIGHT, 500, ("6", "MONTHS", "MALE")), ("MICROV", "MILLIV")))
    assert (source.age, source.sex, source.read_leads()[0, 0]) == (0.5, "male", STEPS[0, 0])
    [source] = open_file(xml(muse_xml(STEPS, EIGHT, 500, ("", "", ""))))
    assert (source.age, source.sex) == (None, None)
    without = re.sub("CRC32>[0-9]+<", "CRC32>0<", muse_xml(STEPS, EIGHT, 500))
    assert open_file(xml(without))[0].samples == 200


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Rhythm", "Median", "expected one waveform of type Rhythm, got Median, Median"),
        ("MICROVOLTS", "adu", "expected the unit MICROVOLTS or MILLIVOLTS for lead 'I', got 'adu'"),
        ("PerBit>1<", "PerBit>0<", "expected LeadAmplitudeUnitsPerBit other than 0 for lead 'I'"),
        ("PerBit>1<", "PerBit><", "expected a number in LeadAmplitudeUnitsPerBit, got ''"),
        (
            "SampleCountTotal>200<",
            "SampleCountTotal>201<",
            "expected 201 samples of 2 bytes for lead 'I', got 400 bytes",
        ),
        ("SampleBase>500<", "SampleBase>fast<", "expected a number in SampleBase, got 'fast'"),
        ("SampleBase>500<", "SampleBase>0<", "expected a rate and samples above 0, got 0 Hz"),
        ("Baseline>0<", "Baseline>7<", "expected a FirstSampleBaseline of 0 for lead 'I', got '7'"),
        ("LeadID>II<", "LeadID>I<", "expected every lead once, got I, I, V1"),
        ("<WaveFormData>\n", "<WaveFormData>\n?", "the samples of lead 'I' are not in base64"),
        ("CRC32>", "CRC32>1", "the samples of lead 'I' do not match their checksum; export the record again"),
        ("</RestingECG>", "", "it is not a complete XML file: no element found"),
        ("RestingECG>", "restingecgdata>", "got 'restingecgdata' (Philips, whose waveforms are compressed); export it"),
        ("RestingECG>", "html>", "expected the XML of GE MUSE (RestingECG) or HL7 aECG (AnnotatedECG), got 'html'"),
        ('restecg.dtd"', 'restecg.dtd" [<!ENTITY a "aaaa">]', "it defines entities, which no ECG needs"),
    ],
)
def test_other_muse_files_are_refused_with_the_reason(xml, old, new, message):
    assert message in refusal(xml(muse_xml(STEPS, EIGHT, 500), (old, new)))


def test_the_series_of_an_aecg_file_is_read(xml):
    text = aecg_xml(STEPS, EIGHT, 500)
    [source] = open_file(xml(text))
    assert (source.leads, source.rate, source.samples, source.sex) == (EIGHT, 500, 200, "male")
    assert source.age == pytest.approx(60, abs=0.01)
    assert source.read().leads == LEADS
    assert np.allclose(source.read_leads(), (STEPS * 2 + 10) / 1000)
    [source] = open_file(xml(text, ("<low value", "<center value")))
    assert source.age == pytest.approx(60, abs=0.01)
    prefixed = text.replace("<", "<a:").replace("<a:/", "</a:").replace("<a:?", "<?").replace("xmlns=", "xmlns:a=")
    [source] = open_file(
        xml(prefixed, ('"0.002" unit="s"', '"3.90625" unit="ms"'), ('"MDC_ECG_LEAD_V1"', '"MDC_ECG_LEAD_V3R"'))
    )
    assert (source.rate, source.leads[2]) == (256, "V3R")
    # As written, in few digits, and as computed in float32.
    rates = {"0.003906": 256, "0.0039": 256, "0.0040018": 249.89, "2.7770064e-3": 360.1, "0.004000000189989805": 250}
    rates |= {"0.016": 62.5, "0.0032": 312.5}
    for increment, rate in rates.items():
        [source] = open_file(xml(text, ('"0.002" unit="s"', f'"{increment}" unit="s"')))
        assert source.rate == (pytest.approx(rate, rel=1e-5) if rate % 1 else rate)
    scale = '<origin value="10" unit="uV"/><scale value="2" unit="uV"/>'
    breath = [(f'_V6"/><value xsi:type="SLIST_PQ">{scale}', f'_V6"/><value>{scale.replace("uV", "ohm")}')]
    [source] = open_file(xml(text, *breath))
    assert source.leads == EIGHT[:7]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("series>", "other>", "expected one series, got 0"),
        ("</series></component>", '</series></component><component><series><code code="RHYTHM"/></series></component>',
         "expected one series, got 2: RHYTHM, RHYTHM"),
        ('unit="s"', 'unit="sample"', "expected an increment of times in s, ms, us, got the unit 'sample'"),
        ('"0.002"', '"0"', "expected an increment of times above 0, got 0 s"),
        ("TIME_ABSOLUTE", "TIME", "expected one sequence of times (TIME_ABSOLUTE or TIME_RELATIVE) in a set, got 0"),
        ('"2" unit="uV"', '"0" unit="uV"', "expected a scale other than 0 for lead 'I'"),
        ('"2" unit="uV"', '"2" unit="adu"', "none in a unit of voltage"),
        ('"10" unit="uV"', '"10" unit="adu"', "expected the unit of the origin for lead 'I', got 'adu'"),
        ("<digits>", "<digits>1.2.3 ", "the digits of lead 'I' are not numbers: could not convert"),
        ('_V1"/><value xsi:type="SLIST_PQ"><origin value="10" unit="uV"/><scale value="2" unit="uV"/><digits>',
         '_V1"/><value xsi:type="SLIST_PQ"><origin value="10" unit="uV"/><scale value="2" unit="uV"/><digits>1 ',
         "expected leads with equal numbers of samples, got 200, 201"),
    ],
)  # fmt: skip
def test_other_aecg_files_are_refused_with_the_reason(xml, old, new, message):
    assert message in refusal(xml(aecg_xml(STEPS, EIGHT, 500), (old, new)))


def test_leads_of_an_aecg_file_that_were_recorded_one_after_the_other_are_refused(xml):
    text = aecg_xml(STEPS, EIGHT, 500, sets=[EIGHT[:4], EIGHT[4:]])
    assert "got I, II, V1, V2 for 0.4 s from 20200601120000.000; V3, V4, V5, V6 for" in refusal(xml(text))


def test_a_file_that_was_replaced_by_another_record_is_refused(xml):
    [source] = open_file(xml(muse_xml(STEPS, EIGHT, 500)))
    xml(muse_xml(STEPS[:2], EIGHT[:2], 500))
    with pytest.raises(DataError, match="it was replaced since it was opened"):
        source.read()
