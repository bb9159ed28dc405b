"""Headers in every dialect are read with the golden values, or refused."""

import json

import numpy as np
import pytest

from kdkit import DataError
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.person import person_vector
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation

# Cases in which the golden set allows a choice, and this reader refuses the header: a gain of 0.
REFUSED = {"gain_zero"}


@pytest.fixture(scope="module")
def cases(shared):
    return json.loads((shared / "golden" / "ecg" / "headers.json").read_text())["cases"]


def write_header(folder, case):
    path = folder / f"{case['case']}.hea"
    path.write_bytes(case["text"].encode())
    return path


def test_every_valid_header_is_read_with_its_values(cases, tmp_path):
    valid = [case for case in cases if case["verdict"] == "valid"]
    assert len(valid) == 42
    for case in valid:
        assert_header_equals(read_header(write_header(tmp_path, case)), case["expected"], case["case"])


def test_every_malformed_header_is_refused_with_its_name(cases, tmp_path):
    malformed = [case for case in cases if case["verdict"] == "error"]
    assert len(malformed) == 17
    for case in malformed:
        with pytest.raises(DataError, match=case["case"]):
            read_header(write_header(tmp_path, case))


def test_values_that_are_a_choice_are_among_the_accepted_ones(cases, tmp_path):
    for case in [case for case in cases if case["verdict"] == "judgement"]:
        path = write_header(tmp_path, case)
        if case["case"] in REFUSED:
            with pytest.raises(DataError, match="gain of 0"):
                read_header(path)
            continue
        header = read_header(path)
        accepted = case["accept"]
        ours = {"age_years": header.age, "codes": list(header.codes)}
        assert all(ours[key] in accepted[key] for key in ours.keys() & accepted.keys()), case["case"]
        expected = {**case["expected"], **{key: ours[key] for key in ours.keys() & accepted.keys()}}
        expected["age_sex_vector"] = person_vector(header.age, header.sex).tolist()
        assert_header_equals(header, expected, case["case"])


def assert_header_equals(header, expected, case):
    ours = {
        "record": header.name,
        "fs": header.rate,
        "n_samples": header.samples,
        "leads": list(header.leads),
        "age_years": header.age,
        "sex": header.sex,
        "codes": list(header.codes),
    }
    assert ours == {key: expected[key] for key in ours}, case
    assert set(header.gains) == {expected["gain_per_mV"]}, case
    assert set(header.baselines) == {expected["baseline"]}, case
    assert np.allclose(person_vector(header.age, header.sex), expected["age_sex_vector"]), case
    for year in (2020, 2021):
        classes = scored_classes(year)
        scored = {classes.codes[column] for column in np.flatnonzero(classes.row(header.codes))}
        assert scored == {codes.split("|")[0] for codes in expected[f"scored_{year}"]}, case


@pytest.mark.parametrize(
    ("variant", "record", "leads"),
    [
        ("2020-02_first_release_abbrev_dx", "A0001", 12),
        ("2020-05_gain_4880_200_2000000_blank_dx", "S0001", 12),
        ("2020-05_gain_4880_200_with_dx", "HR00599", 12),
        ("georgia_dotmat_record_name", "E07500", 12),
        ("physionet_ecg_arrhythmia_no_date", "JS00001", 12),
        ("wfdb_rewritten_16x1_spaced_comments", "Q0001", 12),
        ("reduced_leads/six", "HR06000", 6),
        ("reduced_leads/two", "E07502", 2),
    ],
)
def test_files_of_every_release_are_read(shared, variant, record, leads):
    loaded = read_header(shared / "ecg" / "header_variants" / variant / f"{record}.hea").read()
    assert loaded.name == record
    assert loaded.signal.shape[0] == leads
    assert np.isfinite(loaded.signal).all()
    assert loaded.signal.any(axis=1).all()


def test_a_signal_is_converted_to_mv_with_its_gain(shared):
    golden = np.load(shared / "golden" / "ecg" / "preprocess.npz")
    record = read_header(shared / "ecg" / "georgia" / "E07509.hea").read()
    steps = golden["E07509/adc"] - golden["E07509/baseline"][:, None]
    assert np.allclose(record.signal, steps / golden["E07509/gain_per_mV"][:, None], rtol=1e-6, atol=1e-9)


def test_no_record_is_lost(shared):
    paths = sorted((shared / "ecg").rglob("*.hea"))
    variants = [path for path in paths if "header_variants" in path.parts]
    preparation = Preparation(rate=100, band=None, resampling="polyphase", scaling="zscore")
    prepared, refused = [], {}
    for path in sorted({*variants, *paths[::40]}):
        try:
            prepared.append(preparation.transform(read_header(path).read()).shape[0])
        except DataError as error:
            reason = "leads" if str(error).startswith("expected the leads") else "signal"
            refused.setdefault(reason, []).append(path)
    assert set(prepared) == {12}
    # Records of two, three, four and six leads, and headers without a signal.
    assert {reason: len(reasons) for reason, reasons in refused.items()} == {"leads": 16, "signal": 10}
    assert len(prepared) >= 30
