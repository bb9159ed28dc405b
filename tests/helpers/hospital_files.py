"""Write ECGs in the formats of hospitals: DICOM waveforms, the XML of GE MUSE, and HL7 aECG.

The files follow the public descriptions: DICOM PS3.3 A.34 and C.10.9 with the codes of CID 3001, restecg.dtd of MUSE as
its exports show it, and the aECG implementation guide of 2005. All have a median beat too, which is no record.
"""

import base64
import zlib

import numpy as np

CODES = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64} | {f"V{n}": n + 2 for n in range(1, 7)}
SCHEMES = {"MDC": "2:{}", "SCPECG": "5.6.3-9-{}"}


def dicom_group(steps, leads, rate, scheme="SCPECG", originality="ORIGINAL", offset=0, **channel):
    """Return a multiplex group of steps, (leads, time), of 1 uV. channel: other elements of its channels."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def code(value, scheme, meaning):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return Sequence([item])

    group = Dataset()
    group.WaveformOriginality, group.MultiplexGroupTimeOffset = originality, str(offset)
    group.MultiplexGroupLabel = "RHYTHM" if originality == "ORIGINAL" else "MEDIAN BEAT"
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = steps.shape
    group.SamplingFrequency = str(rate)
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    definitions = []
    for lead in leads:
        definition = Dataset()
        definition.ChannelSourceSequence = code(SCHEMES[scheme].format(CODES.get(lead, 0)), scheme, f"Lead {lead}")
        definition.ChannelSensitivity, definition.ChannelSensitivityCorrectionFactor = "1", "1"
        definition.ChannelSensitivityUnitsSequence = code("uV", "UCUM", "microvolt")
        definition.ChannelBaseline, definition.ChannelSampleSkew = "0", "0"
        definition.WaveformBitsStored = 16
        for name, value in channel.items():
            setattr(definition, name, code(value, "UCUM", "unit") if name.endswith("Sequence") else value)
        definitions.append(definition)
    group.ChannelDefinitionSequence = Sequence(definitions)
    group.WaveformData = np.ascontiguousarray(steps.T, "<i2").tobytes()
    return group


def write_dicom(path, groups, sop_class="TwelveLeadECGWaveformStorage", **elements):
    """Write a DICOM file with these multiplex groups. elements: others of the data set, such as PatientSex."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = getattr(pydicom.uid, sop_class)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["a"])
    for name, value in elements.items():
        setattr(dataset, name, value)
    if groups:
        dataset.WaveformSequence = pydicom.sequence.Sequence(groups)
    dataset.save_as(path, enforce_file_format=True)


def muse_xml(steps, leads, rate, person=("71", "YEARS", "FEMALE")):
    """Return the text of a MUSE file with steps, (leads, time), of 1 uV."""

    def waveform(kind, steps):
        data = "".join(
            f"<LeadData><LeadByteCountTotal>{2 * len(lead)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
            f"<LeadSampleCountTotal>{len(lead)}</LeadSampleCountTotal>"
            "<LeadAmplitudeUnitsPerBit>1</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>"
            f"<LeadID>{name}</LeadID><LeadOffsetFirstSample>0</LeadOffsetFirstSample>"
            "<FirstSampleBaseline>0</FirstSampleBaseline><LeadSampleSize>2</LeadSampleSize><LeadOff>FALSE</LeadOff>"
            f"<LeadDataCRC32>{zlib.crc32(lead.astype('<i2'))}</LeadDataCRC32>"
            f"<WaveFormData>\n{base64.encodebytes(lead.astype('<i2').tobytes()).decode()}</WaveFormData></LeadData>\n"
            for name, lead in zip(leads, steps, strict=True)
        )
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><NumberofLeads>{len(leads)}</NumberofLeads>"
            f"<SampleBase>{rate}</SampleBase><SampleExponent>0</SampleExponent>\n{data}</Waveform>\n"
        )

    age, unit, sex = person
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n<RestingECG>\n'
        f"<PatientDemographics><PatientAge>{age}</PatientAge><AgeUnits>{unit}</AgeUnits><Gender>{sex}</Gender>"
        "<PatientLastName>M\xfcller</PatientLastName></PatientDemographics>\n"
        f"{waveform('Median', steps[:, :20])}{waveform('Rhythm', steps)}</RestingECG>\n"
    )


def aecg_xml(steps, leads, rate, sets=None):
    """Return the text of an aECG file with steps, (leads, time), of 2 uV from an origin of 10 uV.

    sets: the names of the leads of each sequence set; all in one by default.
    """

    def sequence_set(names, steps, start):
        def sequence(code, value):
            return f'<component><sequence><code code="{code}"/><value {value}</value></sequence></component>\n'

        head = f'xsi:type="GLIST_TS"><head value="{start}"/><increment value="{1 / rate:.6g}" unit="s"/>'
        sequences = [sequence("TIME_ABSOLUTE", head)]
        for name, lead in zip(names, steps, strict=True):
            scale = '<origin value="10" unit="uV"/><scale value="2" unit="uV"/>'
            digits = " ".join(map(str, lead.tolist()))
            code = f"MDC_ECG_LEAD_{name.upper()}"
            sequences.append(sequence(code, f'xsi:type="SLIST_PQ">{scale}<digits>{digits}</digits>'))
        return f"<component><sequenceSet>\n{''.join(sequences)}</sequenceSet></component>"

    row = dict(zip(leads, steps, strict=True))
    parts = "".join(
        sequence_set(names, [row[name] for name in names], f"2020060112000{number}.000")
        for number, names in enumerate(sets or [leads])
    )
    beat = sequence_set(leads, steps[:, :20], "20200601120000.000")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<effectiveTime><low value="20200601120000"/>'
        "</effectiveTime><componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject>"
        '<subjectDemographicPerson><administrativeGenderCode code="M"/><birthTime value="19600601"/>'
        "</subjectDemographicPerson></trialSubject></subject></subjectAssignment></componentOf></timepointEvent>"
        f'</componentOf>\n<component><series><code code="RHYTHM"/>{parts}<derivation><derivedSeries>'
        f'<code code="REPRESENTATIVE_BEAT"/>{beat}</derivedSeries></derivation></series></component></AnnotatedECG>\n'
    )
