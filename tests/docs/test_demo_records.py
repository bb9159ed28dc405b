"""The page in docs/demo reads WFDB records as Python does, and refuses the others with the reason; node runs it."""

import numpy as np
import pytest

from kdkit.errors import DataError
from kdkit_ecg.leads import standard_name, standard_names
from kdkit_ecg.person import parse_age
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.source import select_leads
from tests.helpers.demo import calls, needs_node, record_of, values
from tests.helpers.wfdb_files import write_record


@needs_node
def test_every_variant_of_a_header_is_read_as_in_python_or_refused_with_the_reason(shared):
    paths = sorted((shared / "ecg" / "header_variants").rglob("*.hea"))
    results = calls(*({"name": "read", "most": 500, **record_of(path)} for path in paths))
    readable = 0
    for path, result in zip(paths, results, strict=True):
        try:
            record = read_header(path).read()
        except DataError:
            assert "refused" in result, path
            continue
        if "refused" in result:
            header = read_header(path)
            formats = {channel.format for channel in header.channels}
            assert formats != {"16"} or header.segments or header.normalised, (path, result["refused"])
            continue
        readable += 1
        value = result["value"]
        fields = (value["name"], value["rate"], value["age"], value["sex"], value["samples"])
        assert fields == (record.name, record.rate, record.age, record.sex, record.signal.shape[1]), path
        signals = np.array(value["signals"], dtype=np.float64)
        signals = select_leads(signals, value["leads"], record.leads)
        np.testing.assert_allclose(
            np.nan_to_num(signals), record.signal[:, :500], rtol=1e-6, atol=1e-6, err_msg=str(path)
        )
    assert readable >= len(paths) / 2


@needs_node
def test_names_of_leads_and_ages_are_read_as_in_python():
    names = ["AVR", "v1", "Lead I", "MDC_ECG_LEAD_V3", "DII", "Dv", "EKG aVF", "Resp", "toString", "lead"]
    ages = [
        "74",
        "071Y",
        "P71Y",
        "71 years",
        "18 months",
        "4 wks",
        "300",
        "-1",
        "NaN",
        "1e1",
        "3 M",
        "3 m",
        "male",
        "٣",
    ]
    results = values(*({"name": "lead_name", "text": name} for name in names))
    assert results == [standard_name(name) for name in names]
    records = [["ECG I", "II", *(f"c{number}" for number in range(1, 7))], ["I", "II", "C3", "C4"]]
    of_records = values(*({"name": "lead_names", "names": names} for names in records))
    assert of_records == [list(standard_names(names)) for names in records]
    assert values(*({"name": "age", "text": age} for age in ages)) == pytest.approx(
        [parse_age(age) for age in ages], nan_ok=False
    )


# What is replaced in a header of wfdb, by what, and the reason why the page refuses it.
REFUSED = [
    ("16 1000.0(0)/mV", "212 1000.0(0)/mV", "format 212; this page reads format 16 only"),
    ("16 1000.0(0)/mV", "16x2 1000.0(0)/mV", "2 samples per frame"),
    ("16 1000.0(0)/mV", "16:3 1000.0(0)/mV", "skew"),
    ("1000.0(0)/mV", "1000.0(0)/NU", "normalised units"),
    ("1000.0(0)/mV", "1000.0(0)/mmHg", "“mmHg” is not a supported unit"),
    ("1000.0(0)/mV", "0(0)/mV", "gain of 0"),
    ("A1.dat", "../A1.dat", "in the folder of the header"),
    ("A1.dat", "B2.dat", "signal file B2.dat"),
    ("A1 12 500 300", "A1 12 500 301", "300 samples per lead, but the header has 301"),
    ("A1 12 500 300", "A1 12 fast 300", "“fast”"),
    ("A1 12 500 300", "A1 11 500 300", "12 lines"),
    ("A1 12 500 300", "A1 99999 500 300", "from 1 to 1,024"),
    ("A1 12 500 300", "<img src=x>", "“<img src=x>”"),
    (" 0 V6", " 0 V5", "every lead once"),
    (" 0 II\n", " 0 II\0\n", "not text"),
    (" 3153 0 II", " 3154 0 II", "samples of lead II do not match"),
    ("A1 12", "x" * 5000 + " 12", "more than 4,096 characters"),
]


@needs_node
def test_a_header_that_the_page_cannot_read_is_refused_with_the_reason(tmp_path):
    write_record(tmp_path, "A1")
    text, files = (tmp_path / "A1.hea").read_text(), [str(tmp_path / "A1.dat")]
    headers = [text.replace(old, new) for old, new, _ in REFUSED]
    headers.append("A1/2 12 500 300\nA1a 150\nA1b 150\n")
    headers.append("#" * (1 << 20) + "#")
    results = calls(*({"name": "read", "header": list(header.encode()), "files": files} for header in headers))
    reasons = [*(reason for *_, reason in REFUSED), "2 segments", "at most 1,048,576"]
    for result, reason, header in zip(results, reasons, headers, strict=True):
        assert reason in result.get("refused", ""), (header[:300], result)


@needs_node
def test_of_damaged_headers_the_page_reads_none_that_python_refuses(tmp_path):
    write_record(tmp_path, "A1", time=60)
    path = tmp_path / "A1.hea"
    header, files = path.read_bytes(), [str(tmp_path / "A1.dat")]
    random = np.random.default_rng(4)
    parts = [
        b"",
        b" ",
        b"\n",
        b"\0",
        b"/",
        b"#",
        b"-",
        b"(5)",
        b"0",
        b"16",
        b"+24",
        b"x1",
        b":0",
        b"I",
        b"uV",
        b"\xb5V",
        b"1e3",
    ]
    damaged = []
    for _ in range(400):
        content = bytearray(header)
        for position in random.integers(0, len(header), random.integers(1, 4)):
            content[position : position + random.integers(0, 4)] = parts[random.integers(len(parts))]
        damaged.append(bytes(content))
    requests = ({"name": "read", "most": 60, "header": list(content), "files": files} for content in damaged)
    read = [
        (content, result["value"])
        for content, result in zip(damaged, calls(*requests), strict=True)
        if "value" in result
    ]
    assert len(read) > 50
    for content, value in read:
        path.write_bytes(content)
        record = read_header(path).read()
        fields = (value["name"], value["rate"], value["age"], value["sex"])
        assert fields == (record.name, record.rate, record.age, record.sex)
        signals = select_leads(np.array(value["signals"], dtype=np.float64), value["leads"], record.leads)
        np.testing.assert_allclose(signals, record.signal, rtol=1e-6, atol=1e-6 * abs(record.signal).max())
