"""Challenge2020 and Challenge2021 read a folder of records, and exclude those that cannot be used."""

import shutil

import numpy as np
import pytest
import torch

from kdkit import DataError, RecipeError
from kdkit_ecg.datasets import Challenge2020, Challenge2021, base, make_folds
from kdkit_ecg.datasets import challenge as module
from kdkit_ecg.datasets.base import record_ids
from kdkit_ecg.leads import LEADS
from tests.helpers.wfdb_files import write_matrix, write_signals

RHYTHMS = ("426783006", "164889003", "427084000")


def write_challenge_record(folder, name, *, codes="426783006", leads=LEADS, time=600, units="mV", noise=None, rate=500):
    noise = sum(name.encode()) if noise is None else noise  # a seed, different for each name by default
    signal = np.random.default_rng(noise).normal(0, 0.3, (time, len(leads)))
    comments = ["Age: 50", "Sex: Male", f"Dx: {codes}"]
    write_signals(folder, name, signal, rate=rate, leads=leads, unit=units, comments=comments)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("challenge")
    for number in range(40):
        write_challenge_record(
            folder / "a" / f"g{number % 2}", f"A{number:04}", codes=RHYTHMS[number % 3], noise=number
        )
    rows = [f"A{number:04},P{number // 2}" for number in range(40)]  # two records of each patient
    (folder / "records.csv").write_text("\n".join(["record,patient", *rows]))
    return folder


def small_dataset(folder, **options):
    return Challenge2020(folder, length=256, **options)


def test_splits_contain_every_record_once_and_never_divide_a_patient(tree):
    data = small_dataset(tree)
    splits = [set(split.ids.tolist()) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    # Sorted by name, so the two records of a patient are neighbours.
    ids = small_dataset(tree, shares=(1.0, 0.0, 0.0)).train.ids.tolist()
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        assert any({first, second} <= split for split in splits)


def test_a_report_names_records_as_their_files(tree):
    split = small_dataset(tree).test
    names = split.report_names(torch.arange(len(split)))
    assert record_ids(names).tolist() == split.ids.tolist()
    assert all(name.startswith("A00") for name in names)


def test_a_batch_contains_windows_persons_labels_and_ids(tree):
    data = small_dataset(tree)
    batch = data.train.batch([0, 2], draw=1)
    assert batch.inputs.signal.shape == (2, 12, 256)
    assert batch.inputs.signal.dtype == torch.float32
    assert batch.inputs.person.tolist() == [[0.5, 1, 0, 1, 1]] * 2
    assert batch.labels.shape == (2, 24)
    assert batch.labels.sum(dim=1).tolist() == [1, 1]
    assert batch.ids.dtype == torch.int64


def test_creating_the_data_and_naming_its_classes_reads_no_file(tree, monkeypatch):
    # Calling either of them would raise a TypeError.
    monkeypatch.setattr(module, "find_records", None)
    monkeypatch.setattr(base, "read_signals", None)
    data = small_dataset(tree)
    assert data.classes[:2] == ("IAVB", "AF")
    assert (data.task, data.draws, data.notices) == ("multilabel", 10, ())


def test_the_fingerprint_reads_no_signal_and_depends_on_files_patients_and_options(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "read_signals", None)
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    first = small_dataset(tree).fingerprint
    assert small_dataset(copy).fingerprint == first
    assert small_dataset(tree, scaling="raw").fingerprint != first
    assert Challenge2021(tree, length=256).fingerprint != first
    header = next(copy.rglob("A0001.hea"))
    header.write_text(header.read_text().replace("Age: 50", "Age: 51"))
    changed = small_dataset(copy).fingerprint
    assert changed != first
    (copy / "records.csv").unlink()
    assert small_dataset(copy).fingerprint not in (first, changed)


def test_records_that_cannot_be_used_are_excluded_by_reason(tree, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(tree, folder)
    # Leads that were scaled each by itself do not give the others.
    write_challenge_record(folder / "b", "B0", leads=(*LEADS[:2], *LEADS[6:]), units="NU")
    write_challenge_record(folder / "b", "B1", leads=LEADS[:2])
    write_challenge_record(folder / "b", "B2", codes="428750005")
    write_challenge_record(folder / "b", "B3", units="NU")
    write_challenge_record(folder / "b", "B4", noise=7)  # the signal of A0007
    write_challenge_record(folder / "b", "B5")
    (folder / "b" / "B5.dat").unlink()
    write_challenge_record(folder / "b", "B6")
    (folder / "b" / "B6.dat").write_bytes(b"short")
    (folder / "b" / "B7.hea").write_text("<html>")
    write_challenge_record(folder / "b", "B8", rate=80)  # too low for a band up to 47 Hz
    (folder / "b" / "B9.mat").write_bytes(b"")
    write_challenge_record(folder / "copies" / "of" / "others", "A0000", leads=LEADS, time=500)
    # The reasons are listed in the order in which they are checked.
    summary = small_dataset(folder).summary
    assert [line for line in summary.splitlines() if "no positive" not in line] == [
        "40 of 51 records read",
        "  1 excluded, no header next to the signal: b/B9",
        "  1 excluded, unreadable header: b/B7",
        "    b/B7: expected 'NAME LEADS RATE SAMPLES' in the first line, got '<html>'",
        "  1 excluded, no signal file: b/B5",
        "  2 excluded, absent leads: b/B0 (no III, aVR, aVL, aVF), b/B1 (no V1, V2, V3, V4, V5, V6)",
        "  1 excluded, normalised units, not mV (normalised_units=True includes them): b/B3",
        "  1 excluded, no scored code: b/B2",
        "  1 excluded, the name of another record: copies/of/others/A0000",
        "  1 excluded, a rate that the band-pass or the resampling cannot handle: b/B8",
        "    b/B8: a band of 0.5 to 47 Hz does not fit between 0 and half the rate, 40 Hz",
        "  1 excluded, unreadable signal: b/B6",
        "    b/B6: B6.dat has 5 bytes, which hold at most 2 samples, expected 7,200",
        "  1 excluded, the signal of another record: b/B4",
    ]
    with pytest.raises(DataError, match="no scored code: b/B2"):
        _ = small_dataset(folder, strict=True).train
    assert "41 of 51" in small_dataset(folder, normalised_units=True).summary


def test_strict_accepts_a_folder_without_excluded_records(tree):
    assert small_dataset(tree, strict=True).summary.startswith("40 of 40 records read")


def test_the_summary_names_the_classes_without_a_positive_in_a_split(tree, tmp_path):
    train, validation, test = small_dataset(tree).summary.splitlines()[1:]
    assert train.startswith("  no positive in train: IAVB, ")
    assert (", AF," in train, ", NSR," in train, ", PR," in train) == (False, False, True)
    assert (validation[:28], test[:22]) == ("  no positive in validation:", "  no positive in test:")
    assert "in validation" not in Challenge2020.paper(tree, length=256).summary
    write_challenge_record(tmp_path, "C1", codes="164889003")
    only = Challenge2020(tmp_path, length=256, shares=(1.0, 0.0, 0.0)).summary.splitlines()
    assert len(only) == 2
    assert "NSR" in only[1]


def test_a_record_in_the_folder_of_its_database_is_preferred_to_one_nearer_to_the_root(tree, tmp_path):
    folder = tmp_path / "named"
    write_challenge_record(folder / "x", "C1", noise=1, time=700)
    write_challenge_record(folder / "deep" / "ptb", "C1", noise=2)
    (folder / "records.csv").write_text("record,patient,database\nC1,P1,ptb\n")
    assert "the name of another record: x/C1" in small_dataset(folder, shares=(1.0, 0.0, 0.0)).summary


@pytest.mark.parametrize(("validation_split", "shared"), [("separate", False), ("test", True)])
def test_the_validation_split_is_separate_or_the_test_split_with_a_notice(tree, validation_split, shared):
    data = small_dataset(tree, validation_split=validation_split)
    assert (data.validation.ids.tolist() == data.test.ids.tolist()) is shared
    assert bool(data.notices) is shared


def test_the_paper_protocol_has_the_options_of_its_authors(tree):
    data = Challenge2020.paper(tree, length=256, seed=3)
    assert (data.resampling, data.scaling, data.band, data.crop) == ("linear", "raw", None, "random")
    assert len(data.train) + len(data.test) == 40
    assert len(data.notices) == 2
    # The signals are noise with a deviation of 0.3 mV, which raw scaling keeps.
    assert data.test.batch([0], 0).inputs.signal.std() == pytest.approx(0.3, abs=0.1)


def test_without_a_table_each_record_is_a_patient_of_its_own_with_a_notice(tree, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tree / "a", folder)
    data = small_dataset(folder)
    assert len(data.train) > 20
    assert data.notices == ("the patient of every record is unknown; each counts as a separate patient",)


def test_records_in_two_units_are_noticed_unless_they_are_scaled(tmp_path):
    for number in range(6):
        write_challenge_record(tmp_path, f"A{number}", units="NU" if number < 2 else "mV")
    options = {"folds": 3, "normalised_units": True, "store": None}
    raw, scaled = (small_dataset(tmp_path, scaling=scaling, **options) for scaling in ("raw", "zscore"))
    assert len(raw.train) == len(scaled.train)
    (notice,) = set(raw.notices) - set(scaled.notices)
    assert notice.startswith("2 of 6 records are in standard deviations and the others in mV, which scaling='raw' does")


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_an_impossible_rate_is_refused_at_once(tree, rate):
    with pytest.raises(RecipeError, match="rate must be a finite number above 0"):
        small_dataset(tree, rate=rate)


def test_a_folder_without_headers_is_refused_with_the_expected_content(tmp_path):
    (tmp_path / "A0001.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"no \.hea file .* \(1 \.mat files\); expected"):
        _ = small_dataset(tmp_path).train


def test_folds_are_of_a_year_with_scored_classes(tree):
    with pytest.raises(RecipeError, match="year must be 2020 or 2021; got '2020'"):
        make_folds(tree, year="2020")


def test_a_folder_that_does_not_exist_is_refused_at_once(tmp_path):
    with pytest.raises(RecipeError, match="folder must be a path or several of them, got none"):
        small_dataset([])
    with pytest.raises(DataError, match="nowhere does not exist"):
        small_dataset(tmp_path / "nowhere")


def test_a_table_without_its_columns_is_refused(tree, tmp_path):
    write_challenge_record(tmp_path, "C1")
    (tmp_path / "records.csv").write_text("name,who\nC1,P1\n")
    with pytest.raises(DataError, match="needs the columns record and patient, but has name, who"):
        _ = small_dataset(tmp_path).train


TABLE = "record,patient,database\n"


def dataset_with_table(folder, content):
    for name in ("C1", "C2", "C3"):
        write_challenge_record(folder, name)
    (folder / "records.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return Challenge2020(folder, length=256, shares=(1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "content",
    [
        TABLE + "C1,P1,\nC2,P1,\nC3,P2,\n",
        "\ufeff" + TABLE + " C1 ,P1 \nC2\t, P1,\n C3, P2,\n",
        " record , patient \r\nC1.hea,P1\r\nC2.mat,P1\r\nC3.dat,P2\r\n\r\n",
        'patient,record,more\n"P1","C1",x,\nP1,C2\nP1,C2\nP2,C3\n',
        TABLE.replace(",", ";") + "C1;P1;\nC2;P1;\nC3;P2;\n",
    ],
)
def test_tables_written_by_spreadsheets_are_read(tmp_path, content):
    data = dataset_with_table(tmp_path, content)
    assert len(data.train) == 3
    assert [header.patient for header in data._selected.sources] == ["P1", "P1", "P2"]
    assert data.notices == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"record,patient\nC1,P1\nC2,M\xfcller\n", r"records\.csv, line 3, is not UTF-8"),
        ("record,patient\n".encode("utf-16"), r"records\.csv, line 1, is not UTF-8"),
        (
            TABLE + "C1,P1,\nC2,P1,\nC1.hea,P2,\n",
            r"line 4: record C1 has patient 'P2', but patient 'P1' in line 2",
        ),
        (
            TABLE + "C1,P1,a\nC1,P1,b\n",
            r"line 3: record C1 has patient 'P1' in database 'b', but patient 'P1' in database 'a'",
        ),
        (
            TABLE + "/data/C1,P1,\nC9,P2,\n",
            r"lists 2 records, the first one '/data/C1', but none of the 3 records found",
        ),
        (b"", "needs the columns record and patient"),
    ],
)
def test_a_table_that_is_wrong_or_ambiguous_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        _ = dataset_with_table(tmp_path, content).train


def test_records_without_a_patient_in_the_table_are_counted_after_they_were_found(tmp_path):
    data = dataset_with_table(tmp_path, TABLE + "C1,P1,\nC2,,\n")
    assert data.notices == ()
    assert len(data.train) == 3
    assert data.notices == ("the patient of 2 of 3 records is unknown; each counts as a separate patient",)


WORDS = ("", "nan", "NaN", "NA", "N/A", "Unknown", "unknown ", "None", "null", "<NA>", "#N/A", "?", "-")


@pytest.mark.parametrize("word", WORDS)
def test_a_patient_that_is_missing_in_words_is_missing(tmp_path, word):
    data = dataset_with_table(tmp_path, TABLE + f"C1,P1,\nC2,{word},\nC3,{word},{word}\n")
    assert len(data.train) == 3
    assert data.train.groups is None
    assert data.notices == ("the patient of 2 of 3 records is unknown; each counts as a separate patient",)
    assert data._persons == {"C1": "P1", "C2": "record C2", "C3": "record C3"}


def test_the_number_of_a_patient_is_one_in_tables_of_integers_and_of_floats(tmp_path):
    data = dataset_with_table(tmp_path, TABLE + "C1,7.0,1.0.0\nC2,7,\nC3,8,\n")
    assert data._persons == {"C1": "7", "C2": "7", "C3": "8"}
    assert data._selected.sources[0].database == "1.0.0"


def test_patients_that_are_missing_in_words_are_in_any_fold(tmp_path):
    for number in range(30):
        write_challenge_record(tmp_path, f"C{number:02}", codes=RHYTHMS[number % 3], noise=number)
    numbers_and_patients = [(number, "nan" if number % 2 else f"P{number}") for number in range(30)]
    (tmp_path / "records.csv").write_text(
        TABLE + "".join(f"C{n:02},{patient},\n" for n, patient in numbers_and_patients)
    )
    entries = make_folds(tmp_path, k=5).entries
    assert {entry.fold for entry in entries.values() if not entry.patient} == set(range(5))
    assert "nan" not in {entry.patient for entry in entries.values()}


def test_a_table_of_other_records_is_ignored_if_folds_are_by_record(tmp_path):
    dataset_with_table(tmp_path, TABLE + "C9,P2,\n")
    assert len(Challenge2020(tmp_path, length=256, shares=(1.0, 0.0, 0.0), grouping="record").train) == 3


def test_too_few_records_for_a_split_are_an_error_on_every_access(tmp_path):
    write_challenge_record(tmp_path, "C1")
    for options, message in (
        ({}, "1 patients in .* are too few for 5 folds"),
        ({"shares": (0.7, 0.1, 0.2)}, "split has no record"),
    ):
        data = small_dataset(tmp_path, **options)
        for _ in range(2):  # a cached property must not keep half a result
            with pytest.raises(DataError, match=message):
                _ = (data.train, data.validation, data.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "zscores"}, "scaling must be 'zscore' or 'raw'; got 'zscores'"),
        ({"validation_split": "tests"}, "validation_split must be 'separate' or 'test'; got 'tests'"),
        ({"band": (40, 1)}, "low < high"),
        ({"band": (0.5, 47, 4)}, "low < high"),
        ({"band": ("0.5", 47)}, "low < high"),
        ({"length": 0}, "length must be an integer of at least 1; got 0"),
        ({"length": 1000.5}, "length must be an integer of at least 1; got 1000.5"),
        ({"draws": 2.5}, "draws must be an integer of at least 1; got 2.5"),
        ({"seed": "x"}, "seed must be an integer of at least 0; got 'x'"),
        ({"fold": 1.5}, "fold must be an integer of at least 0; got 1.5"),
        ({"folds": 2.5}, "folds must be a number of folds, a file of them or None, got 2.5"),
        ({"shares": (0.5, 0.5)}, "shares must be three numbers"),
        ({"strict": "no"}, "strict must be True or False; got 'no'"),
        ({"normalised_units": "no"}, "normalised_units must be True or False; got 'no'"),
    ],
)
def test_options_of_another_form_are_refused_at_once(tree, options, message):
    with pytest.raises(RecipeError, match=message):
        Challenge2020(tree, **options)


REAL_RECORDS = {
    "cpsc_2018": ("A0101", "A0001"),
    "cpsc_2018_extra": ("Q0048",),
    "georgia": ("E00001", "E00009"),
    "ptb": ("S0001",),
    "header_variants/georgia_dotmat_record_name": ("E07500",),
    "header_variants/reduced_leads/two": ("E07502",),
    "header_variants/incart_257hz_headers_only_no_signal": ("I0016",),
    "header_variants/2020-05_gain_4880_200_with_dx": ("E00009",),
}


def test_real_records_of_every_kind_are_read_or_excluded_with_their_reason(shared, tmp_path):
    for folder, names in REAL_RECORDS.items():
        for path in [path for name in names for path in (shared / "ecg" / folder).glob(f"{name}.*")]:
            target = tmp_path / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    data = Challenge2020(tmp_path, shares=(1.0, 0.0, 0.0))
    summary = data.summary
    assert "the signal of another record: cpsc_2018_extra/Q0048" in summary
    assert "absent leads: header_variants/reduced_leads/two/E07502 (no V1, V2, V3, V4, V5, V6)" in summary
    assert "no signal file: header_variants/incart_257hz_headers_only_no_signal/I0016" in summary
    assert "the name of another record: header_variants/2020-05_gain_4880_200_with_dx/E00009" in summary
    signal = data.train.batch(range(len(data.train)), 0).inputs.signal
    assert signal.shape[1:] == (12, 4096)
    assert torch.isfinite(signal).all()


def test_records_of_one_patient_are_one_group_in_their_split(tree, tmp_path):
    split = small_dataset(tree, shares=(1.0, 0.0, 0.0)).train
    assert len(split.groups.unique()) == 20
    by_name = {int(id): int(group) for id, group in zip(split.ids, split.groups, strict=True)}
    assert len(by_name) == 40
    without_table = tmp_path / "copy"
    shutil.copytree(tree, without_table)
    (without_table / "records.csv").unlink()
    assert small_dataset(without_table, shares=(1.0, 0.0, 0.0)).train.groups is None


def test_records_whose_samples_do_not_match_the_header_are_excluded(tmp_path):
    for number in range(4):
        write_matrix(tmp_path, f"A{number}", np.random.default_rng(number).integers(-800, 800, (12, 600)))
    (tmp_path / "A1.mat").write_bytes(b"<html>" + b"x" * 30000)
    (tmp_path / "A2.mat").write_bytes((tmp_path / "A3.mat").read_bytes())
    data = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0))
    assert data.summary.splitlines()[:2] == [
        "2 of 4 records read",
        "  2 excluded, samples that do not match the first samples and checksums in the header: A1, A2",
    ]
    assert small_dataset(tmp_path, shares=(1.0, 0.0, 0.0), store=None).summary == data.summary
    with pytest.raises(DataError, match="strict=True"):
        _ = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0), strict=True).train


def write_matrices(folder, names, first_seed=0):
    for seed, name in enumerate(names, first_seed):
        samples = np.random.default_rng(seed).integers(-800, 800, (12, 600))
        write_matrix(folder, name, samples, codes=RHYTHMS[seed % 3])


def test_linked_folders_are_read_and_named_by_their_link(tmp_path):
    write_matrices(tmp_path / "disk" / "volume", [f"A{number}" for number in range(6)])
    write_matrices(tmp_path / "data" / "georgia", [f"E{number}" for number in range(6)], first_seed=6)
    (tmp_path / "data" / "cpsc").symlink_to(tmp_path / "disk" / "volume")
    (tmp_path / "data" / "cpsc" / "loop").symlink_to(tmp_path / "data")
    data = small_dataset(tmp_path / "data", shares=(1.0, 0.0, 0.0), strict=True)
    assert data.summary.startswith("12 of 12 records read")
    folds = make_folds(tmp_path / "data", k=3)
    assert {entry.database for entry in folds.entries.values()} == {"cpsc", "georgia"}


def test_a_folder_given_twice_by_different_paths_is_read_once(tmp_path):
    write_matrices(tmp_path / "data" / "georgia", ["E1", "E2"])
    (tmp_path / "link").symlink_to(tmp_path / "data")
    folders = [tmp_path / "data", tmp_path / "link", tmp_path / "data" / "georgia"]
    assert small_dataset(folders, shares=(1.0, 0.0, 0.0)).summary.startswith("2 of 2 records read")


def test_links_that_lead_nowhere_are_in_the_summary_and_an_error_if_strict(tmp_path):
    write_matrices(tmp_path, ["E1"])
    (tmp_path / "cpsc").symlink_to(tmp_path / "not mounted")
    assert "\n  1 of the folders cannot be read: cpsc\n" in small_dataset(tmp_path, shares=(1.0, 0.0, 0.0)).summary
    with pytest.raises(DataError, match="1 of the folders cannot be read: cpsc"):
        _ = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0), strict=True).train


def test_suffixes_in_capitals_are_read_and_counted(tmp_path):
    write_matrices(tmp_path, [f"A{number}" for number in range(6)])
    (tmp_path / "A1.hea").rename(tmp_path / "A1.HEA")
    (tmp_path / "A2.mat").rename(tmp_path / "A2.MAT")
    (tmp_path / "A3.hea").rename(tmp_path / "A3.HEA")
    (tmp_path / "A3.mat").rename(tmp_path / "A3.Mat")
    (tmp_path / "A4.hea").unlink()
    (tmp_path / "A4.mat").rename(tmp_path / "A4.MAT")
    (tmp_path / "records.csv").write_text("record,patient\nA1.HEA,P1\nA2.MAT,P1\n")
    data = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0))
    assert data.summary.splitlines()[:2] == [
        "5 of 6 records read",
        "  1 excluded, no header next to the signal: A4",
    ]
    assert data._persons["A1"] == data._persons["A2"] == "P1"
    assert set(make_folds(tmp_path, k=2).entries) == {"A0", "A1", "A2", "A3", "A5"}


def test_a_signal_that_a_header_with_another_name_describes_has_a_header(tmp_path):
    write_matrices(tmp_path, ["A1", "A2"])
    (tmp_path / "A1.hea").rename(tmp_path / "first.hea")
    (tmp_path / "stray.dat").touch()
    assert small_dataset(tmp_path, shares=(1.0, 0.0, 0.0)).summary.splitlines()[:2] == [
        "2 of 3 records read",
        "  1 excluded, no header next to the signal: stray",
    ]


def test_assumed_gains_and_computed_leads_are_in_the_summary(tmp_path):
    write_matrices(tmp_path, ["A1"])
    samples = np.random.default_rng(9).integers(-800, 800, (12, 600))
    write_matrix(tmp_path, "A2", samples, gain="0")
    write_matrix(tmp_path, "A3", samples[:8] + 1, leads=[*LEADS[:2], *LEADS[6:]])
    data = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0), strict=True)
    assert data.summary.splitlines()[:3] == [
        "3 of 3 records read",
        "  1 without a gain, for which 200 steps per mV are assumed: A2",
        "  1 without III, aVR, aVL, aVF, computed from two other limb leads: A3",
    ]
    assert data.train.batch([0, 1, 2], 0).inputs.signal.shape == (3, 12, 256)


def test_records_that_are_mostly_padding_are_in_the_summary(tmp_path):
    for number in range(2):
        write_challenge_record(tmp_path, f"A{number}", time=600 - 400 * number)  # 1.2 s and 0.4 s
    data = Challenge2020(tmp_path, rate=100, length=1000, shares=(1.0, 0.0, 0.0), strict=True)
    assert data.summary.splitlines()[1] == "  1 shorter than 5% of a sample, of which the rest is zeros: A1"


def test_leads_with_unknown_names_are_named_in_the_summary(tmp_path):
    write_matrices(tmp_path, ["A1"])
    samples = np.random.default_rng(9).integers(-800, 800, (12, 600))
    write_matrix(tmp_path, "A2", samples, leads=[*LEADS[:6], "MLI", "MLII", *LEADS[8:]])
    summary = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0)).summary
    assert "  1 excluded, absent leads: A2 (no V1, V2; unknown: MLI, MLII)\n" in summary


def test_segments_are_read_as_one_record_and_not_as_records(tmp_path):
    write_matrices(tmp_path, ["S1", "S2", "T1"])
    (tmp_path / "A1.hea").write_text("A1/2 12 500 1200\nS1 600\nS2 600\n#Age: 50\n#Sex: Male\n#Dx: 426783006\n")
    data = small_dataset(tmp_path, shares=(1.0, 0.0, 0.0), strict=True)
    assert data.summary.startswith("2 of 2 records read\n")
    assert [header.name for header in data._selected[0]] == ["A1", "T1"]
    assert [signal.shape[1] for signal in data.train.signals] == [617, 309]  # at 257 Hz
    first = data.fingerprint
    copy = tmp_path.with_name(f"{tmp_path.name} copy")
    shutil.copytree(tmp_path, copy)
    assert small_dataset(copy, shares=(1.0, 0.0, 0.0)).fingerprint == first
    (copy / "S2.hea").write_text((copy / "S2.hea").read_text().replace("1000/mV", "1000(5)/mV"))
    (copy / "S1.hea").write_text((copy / "S1.hea").read_text().replace("1000/mV", "1000(5)/mV"))
    assert small_dataset(copy, shares=(1.0, 0.0, 0.0)).fingerprint != first
