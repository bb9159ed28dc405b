"""Records in NumPy, CSV, HDF5, EDF, DICOM and XML files have the samples of those in WFDB files."""

import importlib.util
import zipfile
from datetime import date

import numpy as np
import pytest

from kdkit import DataError, RecipeError
from kdkit_ecg import ArrayFormat, Records
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.open_file import open_file
from kdkit_ecg.records.source import select_leads
from tests.helpers import hospital_files
from tests.helpers.hospital_files import aecg_xml, dicom_group, muse_xml
from tests.helpers.wfdb_files import write_record
from tests.kdkit_ecg.datasets.test_records import EIGHT, RAW, steps, write_table, write_wfdb

ELECTRODES = ("I", "II", *(f"C{number}" for number in range(1, 7)))  # other names of V1 to V6
EIGHT_LEADS = ArrayFormat(rate=400, unit="mV", leads=EIGHT)


def in_mv(number):
    return steps(number) / 1000


def write_numpy(folder, number):
    np.save(folder / f"r{number}.npy", in_mv(number).T if number % 2 else in_mv(number).astype(np.float32))


def write_archive(folder, number):
    np.savez(folder / f"r{number}.npz", patient=np.array(number), ecg=in_mv(number).T if number % 2 else in_mv(number))


def write_csv(folder, number):
    names = ["Time", *reversed(EIGHT)] if number % 2 else ELECTRODES
    columns = [np.arange(200), *in_mv(number)[::-1]] if number % 2 else in_mv(number)
    delimiter = ";" if number % 3 else ","
    text = delimiter.join(names) if number % 4 else "\ufeff" + delimiter.join(names)
    rows = [delimiter.join(f"{value:.6g}" for value in row) for row in np.transpose(columns)]
    (folder / f"r{number}.csv").write_text("\n".join([text, *rows, ""]), encoding="utf-8")


def write_edf(folder, number):
    import edfio

    signals = [
        edfio.EdfSignal(lead * 1000, 400, label=f"ECG {name}", physical_dimension="uV", physical_range=(-32768, 32767))
        for name, lead in zip(ELECTRODES if number % 2 else EIGHT, in_mv(number), strict=True)
    ]
    breath = edfio.EdfSignal(np.zeros(50), 100, label="Resp", physical_dimension="%", physical_range=(-1, 1))
    edfio.Edf([breath, *signals], data_record_duration=0.5).write(folder / f"r{number}.edf")


def write_hdf5(folder, number):
    import h5py

    with h5py.File(folder / f"r{number}.h5", "w") as file:
        file["tracings"] = in_mv(number) if number % 2 else in_mv(number).T


def write_dicom(folder, number):
    scheme = "MDC" if number % 2 else "SCPECG"
    group = dicom_group(steps(number), EIGHT, 400, scheme)
    median = dicom_group(steps(number)[:, :20], EIGHT, 400, scheme, "DERIVED")
    hospital_files.write_dicom(folder / f"r{number}{'' if number % 2 else '.dcm'}", [median, group])


def write_xml(folder, number):
    text = muse_xml(steps(number), EIGHT, 400)
    if number % 2:
        text = aecg_xml(steps(number), EIGHT, 400).replace('"2" unit="uV"', '"0.001" unit="mV"').replace('"10"', '"0"')
    (folder / f"r{number}.xml").write_text(text, encoding="utf-8" if number % 2 else "latin-1")


WRITERS = [write_numpy, write_archive, write_csv, write_edf, write_hdf5, write_dicom, write_xml]


@pytest.mark.parametrize("write", WRITERS)
def test_files_of_every_kind_have_the_samples_of_wfdb(tmp_path, write):
    for kind in ("wfdb", "other"):
        (tmp_path / kind).mkdir()
        for number in range(6):
            names = ELECTRODES if number % 2 else EIGHT
            write_wfdb(tmp_path / kind, number, names) if kind == "wfdb" else write(tmp_path / kind, number)
        write_table(tmp_path / kind, *[(f"r{number}", "ab"[number % 2], "") for number in range(6)])
    wfdb, other = (
        Records(tmp_path / kind, folds=3, arrays=EIGHT_LEADS, leads=(*EIGHT, "aVF"), **RAW)
        for kind in ("wfdb", "other")
    )
    assert other.summary.splitlines()[0] == "6 of 6 records read"
    for split in ("train", "test"):
        ours, theirs = (getattr(data, split).batch([0, 1], 0) for data in (other, wfdb))
        assert ours.ids.equal(theirs.ids)
        assert np.allclose(ours.inputs.signal, theirs.inputs.signal, atol=1e-6)


def write_stack(folder, name="signals.npy", time=256):
    """Write 6 records of 200 samples with zeros at both ends, as in CODE-15%."""
    stack = np.zeros((6, time, 8))
    for number in range(6):
        stack[number, 28:228] = in_mv(number).T
    if name.endswith(".npy"):
        np.save(folder / name, stack)
    else:
        import h5py

        with h5py.File(folder / name, "w") as file:
            file.create_dataset("tracings", data=stack, chunks=(1, time, 8), compression="gzip")
            file["exam_id"] = np.arange(6) + 1_000_000
    return folder / name


@pytest.mark.parametrize("file", ["signals.npy", "exams_part0.hdf5"])
def test_a_file_of_many_records_is_read_by_number_or_id(tmp_path, file):
    write_stack(tmp_path, file)
    names = [str(number if file.endswith(".npy") else number + 1_000_000) for number in range(6)]
    flags = [(number % 2, 1 - number % 2, f"P{number // 2}", 50, number % 2) for number in range(5)]
    rows = [(name, *row) for name, row in zip(names, flags, strict=False)]
    write_table(tmp_path, *rows, columns="exam_id,AF,RBBB,patient_id,age,is_male", name="exams.csv")
    data = Records(
        tmp_path,
        "exams.csv",
        classes=("AF", "RBBB"),
        columns={"record": "exam_id", "patient": "patient_id"},
        arrays=ArrayFormat(rate=400, unit="mV", leads=EIGHT, padded=True),
        shares=(1.0, 0.0, 0.0),
        **RAW,
    )
    batch = data.train.batch(range(5), 0)
    assert np.allclose(batch.inputs.signal, [in_mv(number) for number in range(5)], atol=1e-6)
    assert batch.labels.tolist() == [[number % 2, 1 - number % 2] for number in range(5)]
    assert batch.inputs.person[:2].tolist() == [pytest.approx([0.5, 1, 1, 0, 1]), pytest.approx([0.5, 1, 0, 1, 1])]
    assert data.notices == ()
    options = {"columns": {"record": "exam_id"}, "shares": (1, 0, 0), **RAW}
    kept = Records(tmp_path, "exams.csv", classes=("AF",), arrays=EIGHT_LEADS, **options)
    assert kept._loaded[0].signals[0].shape == (8, 256)  # padding is removed only if the format says that there is some


def test_an_id_that_two_files_have_is_refused_unless_the_file_is_named(tmp_path):
    for name in ("a.npy", "b.npy"):
        write_stack(tmp_path, name)
    write_table(tmp_path, *[(str(number), "AF", "") for number in range(3)])
    with pytest.raises(DataError, match=r"the record '0', which .*a.npy and .*b.npy both have; .* such as b/0"):
        Records(tmp_path, arrays=EIGHT_LEADS, **RAW)
    write_table(tmp_path, *[(f"b/{number}", "AF", "") for number in range(3)])
    data = Records(tmp_path, arrays=EIGHT_LEADS, shares=(1.0, 0.0, 0.0), **RAW)
    assert data.train.names == ["b/0", "b/1", "b/2"]


def test_a_row_that_names_a_file_of_several_records_is_explained(tmp_path):
    for number in range(2):
        np.savez(tmp_path / f"r{number}.npz", raw=in_mv(number), clean=in_mv(number + 2))
    write_table(tmp_path, ("r0", "AF", ""), ("r1/raw", "AF", ""))
    data = Records(tmp_path, arrays=EIGHT_LEADS, shares=(1.0, 0.0, 0.0), **RAW)
    assert data.train.names == ["r1/raw"]
    assert "r0: it has 2 records; name each in the table of labels, such as r0/raw, r0/clean" in data.summary


def test_arrays_that_are_no_records_need_no_format(tmp_path):
    for number in range(2):
        write_wfdb(tmp_path, number)
    for name in ("features.npy", "model.h5"):
        write_stack(tmp_path, name)
    write_table(tmp_path, ("r0", "AF", ""), ("r1", "AF", ""))
    data = Records(tmp_path, shares=(1.0, 0.0, 0.0), **RAW)
    assert (data.train.names, data.summary) == (["r0", "r1"], "2 of 2 records read")
    write_table(tmp_path, ("r0", "AF", ""), ("lost", "AF", ""))
    lines = Records(tmp_path, shares=(1.0, 0.0, 0.0), **RAW).summary.splitlines()
    assert lines[1:3] == ["  1 excluded, unreadable header: model", lines[2]]
    assert "model.h5 does not state its rate, unit and leads; pass them" in lines[2]


def test_dicom_files_are_named_by_their_whole_number(tmp_path):
    names = [f"1.2.840.{number}" for number in range(6)]
    for number, name in enumerate(names):
        hospital_files.write_dicom(tmp_path / name, [dicom_group(steps(number), EIGHT, 400)])
    (tmp_path / "RECORDS").write_text("r0\n")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    rows = [(name, "ab"[number % 2], "") for number, name in enumerate(names[:5])]
    write_table(tmp_path, *rows)
    data = Records(tmp_path, shares=(1.0, 0.0, 0.0), **RAW)
    assert data.summary.splitlines()[:2] == [
        "5 of 6 records read",
        "  1 excluded, no row in the table of labels: 1.2.840.5",
    ]
    batch = data.train.batch(range(5), 0)
    assert np.allclose(batch.inputs.signal, [in_mv(number) for number in range(5)], atol=1e-6)


def test_units_gains_and_invalid_samples_become_mv(tmp_path):
    values = in_mv(0).T.copy()
    values[50:53, 0] = np.nan
    np.save(tmp_path / "r.npy", (values * 1000 * 4).astype(np.float32))
    [source] = open_file(tmp_path / "r.npy", ArrayFormat(rate=400, unit="uV", gain=4, leads=EIGHT))
    record = source.read()
    assert (record.leads, record.rate, record.name, record.normalised) == (LEADS, 400, "r", False)
    expected = in_mv(0)
    expected[0, 49:54] = np.linspace(expected[0, 49], expected[0, 53], 5)
    assert np.allclose(select_leads(record.signal, record.leads, EIGHT), expected, atol=1e-6)
    converter_steps = np.where(np.isnan(values), -32768, 1000 * values).round().astype(np.int16)
    np.save(tmp_path / "steps.npy", converter_steps)
    options = {"unit": "mV", "gain": 1000, "invalid": -32768, "leads": EIGHT}
    [source] = open_file(tmp_path / "steps.npy", ArrayFormat(rate=400, **options))
    assert np.allclose(source.read_leads(), values.T, atol=6e-4, equal_nan=True)
    np.save(tmp_path / "padded.npy", np.pad(values, ((30, 70), (0, 0)), constant_values=np.nan))
    [source] = open_file(tmp_path / "padded.npy", ArrayFormat(rate=400, unit="mV", leads=EIGHT, padded=True))
    assert np.array_equal(source.read_leads(), values.T, equal_nan=True)
    [source] = open_file(tmp_path / "r.npy", ArrayFormat(rate=400, unit="NU", leads=EIGHT))
    assert source.normalised
    assert source.read().leads == EIGHT  # the others are no longer sums of these


def test_files_of_numbers_need_a_format(tmp_path):
    write_numpy(tmp_path, 0)
    write_table(tmp_path, ("r0", "a", ""))
    with pytest.raises(DataError, match=r"r0\.npy does not state its rate, unit and leads; .*ArrayFormat"):
        Records(tmp_path, **RAW)


def test_files_of_numbers_may_have_formats_by_their_paths(tmp_path):
    for name, scale in (("a", 1), ("b", 1000)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "r.npy", in_mv(0).T * scale)
    write_table(tmp_path, ("a/r", "AF", ""), ("b/r", "AF", ""))
    options = {"shares": (1.0, 0.0, 0.0), **RAW, "rate": 400}
    formats = {"b/*": ArrayFormat(rate=400, unit="uV", leads=EIGHT), "*.npy": EIGHT_LEADS}
    data = Records(tmp_path, arrays=formats, **options)
    signals = data.train.batch(range(1), 0).inputs.signal
    assert (data.train.names, data.summary.splitlines()[0]) == (["a/r"], "1 of 2 records read")  # b/r has its signal
    assert np.allclose(signals, [in_mv(0)], atol=1e-6)
    notice = "the key 'c/*' of arrays matches the path of no file of numbers below the folder"
    assert Records(tmp_path, arrays={"c/*": EIGHT_LEADS, **formats}, **options).notices == (notice,)
    with pytest.raises(DataError, match=r"a/r\.npy does not state its rate"):
        Records(tmp_path, arrays={"b/*": EIGHT_LEADS}, **options)
    for wrong in ({"*": None}, {tmp_path: EIGHT_LEADS}):
        with pytest.raises(RecipeError, match="arrays must be an ArrayFormat"):
            Records(tmp_path, arrays=wrong, **options)


def test_a_changed_signal_of_the_same_size_changes_the_digest_of_the_training_samples(tmp_path):
    def digest(**options):
        data = Records(tmp_path, shares=(1.0, 0.0, 0.0), arrays=EIGHT_LEADS, **{**RAW, **options})
        return data.fingerprint, data.train_digest

    for number in (0, 2):
        write_numpy(tmp_path, number)
    write_table(tmp_path, ("r0", "a", ""), ("r2", "b", ""))
    first = digest()
    assert digest(store=tmp_path / "store") == first
    np.save(tmp_path / "r0.npy", in_mv(4).astype(np.float32))
    assert digest()[0] == first[0]
    assert digest(store=tmp_path / "store")[1] == digest()[1] != first[1]


def test_a_record_that_is_excluded_takes_no_part_in_duplicates_and_digests(tmp_path):
    for number, rate in ((0, 80), (2, 400)):  # 80 Hz is too low for a band up to 47 Hz
        write_record(tmp_path, f"r{number}", rate=rate, noise=1)
    write_record(tmp_path, "r4", noise=4)
    write_table(tmp_path, ("r0", "a", ""), ("r2", "a", ""), ("r4", "b", ""))
    for store in (None, tmp_path / "store"):
        data = Records(tmp_path, shares=(1.0, 0.0, 0.0), store=store, leads=EIGHT, band=(0.5, 47.0))
        assert (data._loaded.records.names, len(data._loaded.contents)) == (["r2", "r4"], 2)
        assert "1 excluded, a rate that the band-pass or the resampling cannot handle: r0" in data.summary


def save(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", save(np.zeros((8, 8))), "one axis of time and one of the 8 leads"),
        ("a.npy", save(np.zeros((200, 3))), "one axis of time and one of the 8 leads"),
        ("a.npy", save(np.zeros((8, 0))), "one axis of time and one of the 8 leads"),
        ("a.npy", save(np.zeros(200)), "the axes time and leads"),
        ("a.npy", save(np.zeros((8, 200), complex)), "values of type complex128"),
        ("a.npy", save(np.zeros((8, 200), "U3")), "values of type"),
        ("a.npy", lambda path: np.save(path, np.array([{}] * 8), allow_pickle=True), "cannot be read"),
        ("a.npy", lambda path: path.write_bytes(b"short"), "cannot be read"),
        ("a.csv", lambda path: path.write_text(""), "expected a first line"),
        ("a.csv", lambda path: path.write_text("I,I\n1,2\n"), "a different name for each column"),
        ("a.csv", lambda path: path.write_text("1,2\n1,2\n"), "2 columns and no line of names; expected the 8 leads"),
        ("a.csv", lambda path: path.write_text("I,II\n1,2,3\n"), "expected 2 columns, as in its first line, got 3"),
        ("a.csv", lambda path: path.write_text("I,II\nuV,mV\n1,2\n"), "have the unit .uV., but it is described as"),
        ("a.csv", lambda path: path.write_text("I [V],II\n1,2\n"), "have the unit 'V', but it is described as 'mV'"),
        ("a.csv", lambda path: path.write_text("time,\n1,2\n"), "a different name for each column"),
        ("a.csv", lambda path: path.write_text("1" * 9000), "first line of at most 4,096 characters"),
        ("a.mp3", lambda path: path.write_text("x"), r"not a file of records; expected one of \.hea"),
    ],
)
def test_a_file_that_has_no_signal_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} .*{message}") as raised:
        open_file(tmp_path / name, EIGHT_LEADS)
    assert str(raised.value).count(name) == 1


@pytest.mark.parametrize("text", ["I,II\n1,x\n", "I,II\n1,2\n1\n", "I,II\n", "I,II\n1,2\n1,2,3\n"])
def test_a_csv_with_a_line_that_has_other_columns_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    [source] = open_file(tmp_path / "a.csv", EIGHT_LEADS)
    with pytest.raises(DataError, match=r"the signal of .*a\.csv cannot be read"):
        source.read()


@pytest.mark.parametrize(
    "text",
    [
        "time,I,V1\n0,1,4\n0.01,NaN,5\n0.02,3,6\n",
        "Time (s);I [mV];V1 (mV)\n0;1;4\n0.01;;5\n0.02;3;6\n",  # an empty cell, as pandas writes NaN
        "'Elapsed time','I','V1'\n'hh:mm:ss.mmm','mV','mV'\n'0:00.0',1,4\n'0:00.1',-,5\n'0:00.2',3,6\n",  # rdsamp
        ',Lead I,V1\n"2020-01-01 00:00:00,1",1,4\n2020-01-01 00:00:01,NA,5\n2020-01-01 00:00:02,3,6\n',
        "'sample #','I','V1'\n0,1,4\n1,?,5\n2,3,6",
        "t;I;V1\n0,00;1,000;4,0\n0,01;;5\n0,02;3;6,00\n",  # decimal commas
        'I,V1\n1,"4,0"\n2,5\n"3,000",6\n',
        "Zeit [s];I [mV];HR [bpm];V1 [mV]\n0,00;1;70;4\n0,01;;70;5\n0,02;3;71;6\n",
        "Zeit,I,SpO2,V1,Beat\nms,mV,%,mV,-\n0,1,97,4,V\n10,,97,5,\n20,3,97,6,V\n",
    ],
)
def test_a_csv_may_have_columns_of_other_quantities_a_line_of_units_and_empty_cells(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=100, unit="mV"))
    assert source.leads == ("I", "V1")
    assert source.read().signal.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text",
    [
        "I\n1\n\n\n4\n5\n\n",
        "1\n \n\n4\n5",
        "I\r\n1\r\n\r\n\r\n4\r\n5\r\n",
        "I\r\r\n1\r\r\n2\r\r\n3\r\r\n4\r\r\n5\r\r\n",  # without newline="" on Windows
    ],
)
def test_an_empty_line_of_a_csv_of_one_column_is_an_invalid_sample(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, newline="")
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=100, unit="mV", leads=("I",)))
    assert source.read().signal.tolist() == [[1, 2, 3, 4, 5]]


def test_the_index_of_pandas_next_to_one_lead_may_be_divided_by_a_tab(tmp_path):
    (tmp_path / "a.csv").write_text("\tI\n0\t1.5\n1\t2\n")
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=100, unit="mV"))
    assert source.read().signal.tolist() == [[1.5, 2]]


@pytest.mark.parametrize("stored", [False, True])
def test_files_of_a_wrong_unit_are_named_in_the_summary_if_signals_stay_in_mv(tmp_path, stored):
    for number in range(9):
        (write_numpy if number % 3 else write_csv)(tmp_path, number)
    write_table(tmp_path, *((f"r{number}", "ab"[number % 2]) for number in range(9)), columns="record,label")
    units = {"*.csv": ArrayFormat(rate=400, unit="uV", leads=EIGHT), "*": EIGHT_LEADS}
    options = {**RAW, "store": tmp_path / "store" if stored else None, "folds": 3, "arrays": units}
    expected = "  3 of 9 records that were examined span less than 0.05 mV or more than 20 mV in the median lead; "
    assert f"{expected}check their unit and gain: r0 (0.00159 mV), r3 (" in Records(tmp_path, **options).summary
    assert "span" not in Records(tmp_path, **{**options, "scaling": "zscore"}).summary
    (notice, *_) = Records(tmp_path, **{**options, "length": 10}).notices
    assert notice == "a sample has length=10 samples, 0.025 s at 400 Hz, which is shorter than a heartbeat"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_csv_of_a_program_on_windows_is_read(tmp_path, encoding):
    text = "Zeit [s];I [µV];V1 [µV]\n0,000;1;4\n0,004;;5\n0,008;3;6\n"
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=250, unit="uV"))
    assert np.allclose(source.read().signal, np.array([[1, 2, 3], [4, 5, 6]]) / 1000)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("Zeit [s];I;V1\n0,000;1;4\n0,004;;5\n0,008;3;6\n", "250"),
        ("time_ms,I,V1\n0,1,4\n2,2,5\n4,3,6\n", "500"),
        ("seconds\tI\tV1\n10\t1\t4\n10.01\t2\t5\n", "100"),
        (",time,I,V1\n0,0.000,1,4\n1,0.002,2,5\n2,0.004,3,6\n", "500"),  # without a unit, but not in ms or samples
    ],
)
def test_a_csv_whose_time_has_another_rate_is_refused(tmp_path, text, rate):
    (tmp_path / "a.csv").write_text(text)
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=1000, unit="mV"))
    with pytest.raises(DataError, match=f"column of the time has {rate} samples per second, but rate=1000"):
        source.read()
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=float(rate) * 1.01, unit="mV"))  # times are rounded
    assert source.read().signal.shape[0] == 2


@pytest.mark.parametrize("step", [1, 2, 1 / 30_000, 0])
def test_a_time_whose_unit_is_not_clear_is_not_compared_with_the_rate(tmp_path, step):
    (tmp_path / "a.csv").write_text(f"time,I,V1\n0,1,4\n{step},2,5\n{2 * step},3,6\n")
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=250, unit="mV"))
    assert source.read().signal.shape == (2, 3)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_csv_may_have_a_time_with_separators_of_thousands(tmp_path, delimiter):
    rows = [f'"{100 * row:,}"{delimiter}{row}' for row in range(12)]
    (tmp_path / "a.csv").write_text("\n".join([f"time [ms]{delimiter}I", *rows]))
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=10, unit="mV"))
    assert np.allclose(source.read().signal, [np.arange(12)])


def test_a_csv_without_names_may_have_decimal_commas(tmp_path):
    (tmp_path / "a.csv").write_text("0,1\t-0,2\n1,234\t5\n")
    [source] = open_file(tmp_path / "a.csv", ArrayFormat(rate=100, unit="mV", leads=("I", "V1")))
    assert np.allclose(source.read().signal, [[0.1, 1.234], [-0.2, 5]])


def test_a_comma_that_may_be_between_thousands_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("I;V1\n1,234;5\n12;-2,345\n")
    [source] = open_file(tmp_path / "a.csv", EIGHT_LEADS)
    with pytest.raises(DataError, match=r"'1,234' .* Its comma may be of decimals or thousands; write decimal points"):
        source.read()


def test_a_csv_that_was_changed_since_it_was_opened_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("I,II\n1,2\n")
    [source] = open_file(tmp_path / "a.csv", EIGHT_LEADS)
    (tmp_path / "a.csv").write_text("II,I\n1,2\n")
    with pytest.raises(DataError, match=r"a\.csv cannot be read: its first line was changed"):
        source.read()


@pytest.mark.parametrize("first_line", ["", "0 1 2 3 4 5 6 7"])  # the second one as pandas writes it
def test_a_csv_without_names_has_the_leads_of_the_format(tmp_path, first_line):
    np.savetxt(tmp_path / "a.csv", in_mv(0).T, header=first_line, comments="")
    [source] = open_file(tmp_path / "a.csv", EIGHT_LEADS)
    assert np.allclose(select_leads(source.read().signal, LEADS, EIGHT), in_mv(0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "mmHg"}, "unit='mmHg' is not a unit of a signal"),
        ({"unit": ""}, "is not a unit of a signal"),
        ({"rate": 0}, "rate must be a finite number above 0"),
        ({"gain": -1}, "gain must be a finite number above 0"),
        ({"invalid": "NaN"}, "invalid must be a number that marks invalid samples, or None, got 'NaN'"),
        ({"leads": ("I", "Lead I")}, "leads must be different names"),
        ({"leads": "I"}, "leads must be a tuple of names"),
        ({"padded": "no"}, "padded must be True or False; got 'no'"),
    ],
)
def test_a_format_with_impossible_values_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        ArrayFormat(**{"rate": 400, "unit": "mV", "leads": EIGHT, **options})


def test_hdf5_files_that_lead_elsewhere_or_are_too_large_are_refused(tmp_path):
    import h5py

    path = write_stack(tmp_path, "a.hdf5")

    def refused(name, message):
        with pytest.raises(DataError, match=rf"a\.hdf5 cannot be read: .*{message}"):
            open_file(path, ArrayFormat(rate=400, unit="mV", leads=EIGHT, signals=name))

    with h5py.File(path, "a") as file:
        file["link"] = h5py.ExternalLink("b.hdf5", "tracings")
        file["soft"] = h5py.SoftLink("/tracings")
        layout = h5py.VirtualLayout((6, 256, 8), "f8")
        layout[:] = h5py.VirtualSource("b.hdf5", "tracings", (6, 256, 8))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (6, 256, 8), "f8", external=[("/etc/passwd", 0, 6 * 256 * 64)])
        file.create_dataset("huge", (2, 10_000_000, 8), "f4", chunks=(1, 1000, 8))
        file.create_dataset("piece", (100_000, 1000, 8), "u1", chunks=(50_000, 1000, 8))
        file.create_dataset("flat", (6, 256), "f8")
        file.create_dataset("four", (6, 256, 8, 1), "f8")
        file["text"] = "words"
        file.create_group("group")
    for name in ("link", "soft", "virtual", "external", "group", "none"):
        refused(name, "expected a dataset")
    refused("huge", "at most 50,000,000 numbers")
    refused("piece", "at most 50,000,000 numbers")
    refused("flat", "one axis of time and one of the 8 leads")
    refused("four", r"of shape \(records, time, leads\)")
    refused("text", "cannot be read|type|shape")
    with h5py.File(path, "a") as file:
        del file["exam_id"]
        file["exam_id"] = [1, 2]
    refused("tracings", "an id in exam_id for each of the 6 records")


def test_edf_files_that_do_not_match_their_header_are_refused(tmp_path):
    import edfio

    write_edf(tmp_path, 0)
    path = tmp_path / "r0.edf"
    whole = path.read_bytes()

    def refused(raw, message):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=rf"r0\.edf cannot be read: .*{message}"):
            open_file(path)

    refused(whole[:-100], "Incomplete data record|truncated")
    refused(whole[:192] + b"EDF+D" + whole[197:], "gaps .*; convert it to files without gaps")
    refused(whole.replace(b"uV      ", b"mmHg    "), "in mV, uV, nV, V or NU; it has Resp in '%', I in 'mmhg'")
    refused(whole.replace(b"ECG II  ", b"ECG I   "), "expected every lead once")
    refused(whole[:300], "")
    refused(b"", "it has 0 bytes; expected a header of at least 256")
    path.write_bytes(whole[:236] + b"-1      " + whole[244:])  # as written by a recorder that was switched off
    [source] = open_file(path)
    assert (source.counted, source.samples, source.rate, source.leads) == (True, 200, 400, EIGHT)
    patient = edfio.Patient(sex="F", birthdate=date(1950, 1, 1))
    recording = edfio.Recording(startdate=date(2021, 1, 1))
    signal = edfio.EdfSignal(np.zeros(400), 400, label="EKG", physical_dimension="mV", physical_range=(-1, 1))
    edfio.Edf([signal], patient=patient, recording=recording).write(path)
    [source] = open_file(path)
    assert (source.sex, source.age, source.leads) == ("female", pytest.approx(71, abs=0.01), ("EKG",))


@pytest.mark.parametrize(
    ("package", "suffix", "extra"),
    [("edfio", ".edf", "edf"), ("h5py", ".hdf5", "hdf5"), ("pydicom", ".dcm", "dicom")],
)
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, package, suffix, extra):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else original(name))
    (tmp_path / f"r0{suffix}").touch()
    write_table(tmp_path, ("r0", "a", ""))
    with pytest.raises(RecipeError, match=rf"needs {package}: pip install 'kdkit\[{extra}\]'"):
        Records(tmp_path, arrays=EIGHT_LEADS, **RAW)


def test_the_ecg_of_a_polysomnography_is_read_at_its_rate(tmp_path):
    import edfio

    options = {"physical_dimension": "uV", "physical_range": (-500, 500)}
    rates = {"C3": 100, "EKG1": 250}
    signals = [edfio.EdfSignal(np.zeros(rate), rate, label=label, **options) for label, rate in rates.items()]
    edfio.Edf(signals).write(tmp_path / "night.edf")
    [source] = open_file(tmp_path / "night.edf")
    assert (source.leads, source.rate, source.samples) == (("EKG1",), 250, 250)
    of_types = [edfio.EdfSignal(np.zeros(100), 100, label=name, **options) for name in ("EEG Fz", "ECG I", "Resp", "X")]
    edfio.Edf(of_types).write(tmp_path / "night.edf")
    assert open_file(tmp_path / "night.edf")[0].leads == ("I", "X")
    same_rate = [edfio.EdfSignal(np.zeros(100), 100, label=name, **options) for name in ("C3", "ECG", "EMG chin")]
    edfio.Edf(same_rate).write(tmp_path / "night.edf")
    assert open_file(tmp_path / "night.edf")[0].leads == ("ECG",)
    edfio.Edf([signals[0], edfio.EdfSignal(np.zeros(200), 200, label="C4", **options)]).write(tmp_path / "eeg.edf")
    with pytest.raises(DataError, match="expected one rate for all leads, got 100 Hz, 200 Hz"):
        open_file(tmp_path / "eeg.edf")


def test_an_archive_whose_compressed_array_demands_a_long_header_takes_no_memory(tmp_path):
    length = 100_000
    with zipfile.ZipFile(tmp_path / "r.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.npy", b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b" " * length)
    with pytest.raises(DataError, match=r"r\.npz cannot be read: .* header, expected 100000 bytes got 16372"):
        open_file(tmp_path / "r.npz", EIGHT_LEADS)


@pytest.mark.parametrize("save_archive", [np.savez, np.savez_compressed])
def test_an_archive_may_have_other_files_and_is_refused_if_an_array_is_damaged(tmp_path, save_archive):
    path = tmp_path / "r.npz"
    save_archive(path, first=in_mv(0), second=in_mv(1).T)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "no array")
        offset = archive.infolist()[1].header_offset + 200
    sources = open_file(path, EIGHT_LEADS)
    assert [source.name for source in sources] == ["first", "second"]
    for number, source in enumerate(sources):
        signal = select_leads(source.read().signal, LEADS, EIGHT)
        assert np.allclose(signal, in_mv(number), atol=1e-6)
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    sources[0].read()
    with pytest.raises(DataError, match=r"the signal of .*r\.npz cannot be read"):
        sources[1].read()


def test_an_array_that_is_larger_than_its_shape_or_compressed_otherwise_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", in_mv(0))
    content = (tmp_path / "a.npy").read_bytes()
    for name, data, method in (("large", content + bytes(1 << 20), 8), ("lzma", content, zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", method) as archive:
            archive.writestr("ecg.npy", data)
    with pytest.raises(DataError, match=r"ecg\.npy has a different size than its shape"):
        open_file(tmp_path / "large.npz", EIGHT_LEADS)
    with pytest.raises(DataError, match="compressed by a method that numpy does not use"):
        open_file(tmp_path / "lzma.npz", EIGHT_LEADS)[0].read()
