"""Records reads any lead set, rate and file kind, with the labels of a table."""

import csv
import math
import unicodedata

import numpy as np
import pytest
import torch
from torch.nn import BCEWithLogitsLoss

import kdkit
from kdkit import DataError, Net, Recipe, RecipeError, Stage, Training, Truth
from kdkit.losses import IgnoreUnknown
from kdkit_ecg import Leads, LRHNet, Records
from kdkit_ecg.augmentations import PowerLine, Sometimes
from kdkit_ecg.datasets.label_table import read_label_table
from kdkit_ecg.datasets.signal_split import SIGNAL
from kdkit_ecg.leads import LEADS
from kdkit_ecg.report import paper
from tests.helpers.wfdb_files import write_matrix

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
RAW = {"scaling": "raw", "band": None, "rate": 400, "length": 200, "store": None}


def steps(number, leads=8, time=200):
    return np.random.default_rng(number).integers(-800, 800, (leads, time))


def write_table(folder, *rows, columns="record,label,patient", name="labels.csv"):
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])


def write_wfdb(folder, number, leads=EIGHT, name=None):
    name = name or f"r{number}"
    return write_matrix(
        folder, name, steps(number, len(leads)), leads=leads, record_line=f"{name} {len(leads)} 400 200"
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """24 records of eight leads in folders of two patients each, three classes, two records of each patient."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(24):
        write_wfdb(folder / f"p{number // 4}", number)
    labels = ("normal", "AF", "normal; AF", "other")
    rows = [(f"r{number}", labels[number % 4], f"P{number // 2}", 40 + number, "F") for number in range(24)]
    write_table(folder, *rows, columns="record,label,patient,age,sex")
    return folder


def test_leads_classes_and_the_network_follow_from_the_records(tree):
    data = Records(tree, **RAW)
    assert (data.leads, data.classes, data.task) == (EIGHT, ("AF", "normal", "other"), "multilabel")
    assert data.preparation["leads"] == data.preparation["steps"][0]["names"] == list(EIGHT)  # of an exported network
    batch = data.train.batch([0, 1], 0)
    assert batch.inputs.signal.shape == (2, 8, 200)
    assert batch.inputs.person[0, 1:].tolist() == [1, 1, 0, 1]
    assert LRHNet.for_data(data, width=4)(*batch.inputs).shape == (2, 3)
    inputs, _ = Leads(2, among=data.leads)(batch)
    assert LRHNet.for_data(data, leads=2, width=4)(*inputs).shape == (2, 3)
    assert data.summary.splitlines()[0] == "24 of 24 records read"


def test_signals_and_labels_are_those_of_the_files_and_the_table(tree):
    data = Records(tree, shares=(1.0, 0.0, 0.0), **RAW)
    names = [source.name for source in data._selected[0]]
    batch = data.train.batch(range(24), 0)
    for name, signal, labels in zip(names, batch.inputs.signal, batch.labels, strict=True):
        number = int(name[1:])
        assert np.allclose(signal, steps(number) / 1000, atol=1e-6)
        # AF, normal, other
        assert labels.tolist() == [[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]][number % 4]


def test_folds_never_divide_a_patient_and_test_every_record_once(tree):
    tested = []
    for fold in range(5):
        data = Records(tree, fold=fold, **RAW)
        splits = [set(split.groups.tolist()) for split in (data.train, data.validation, data.test)]
        assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
        tested += data.test.ids.tolist()
    assert len(tested) == len(set(tested)) == 24


def test_folds_are_those_of_a_file_or_of_the_table(tree, tmp_path):
    made = Records(tree, folds=4, **RAW).make_folds()
    made.write(tmp_path / "folds.csv")
    data = Records(tree, folds=tmp_path / "folds.csv", fold=2, **RAW)
    assert len(data.test) == sum(entry.fold == 2 for entry in made.entries.values())
    rows = [(f"r{number}", "AF", f"P{number // 2}", number // 2 % 3) for number in range(24)]
    write_table(tree, *rows, columns="record,label,patient,fold", name="other.csv")
    assert len(Records(tree, "other.csv", folds="other.csv", **RAW).test) == 8
    text = "".join(f"./r{number}.EDF;AF;{number // 2 % 3}\n" for number in range(24))
    (tree / "other.csv").write_text(f"Record;Label;Fold\n{text}")
    assert len(Records(tree, "other.csv", folds=tree / "other.csv", **RAW).test) == 8


def test_folds_in_the_table_of_labels_may_have_columns_of_other_names(tree):
    rows = [(f"r{number}", "AF", number // 2 % 3, f"P{number // 2}") for number in range(24)]
    write_table(tree, *rows, columns="exam_id,diagnosis,cv,pid", name="named.csv")
    columns = {"record": "exam_id", "label": "diagnosis", "fold": "cv", "patient": "pid"}
    data = Records(tree, "named.csv", columns=columns, folds="named.csv", fold=2, **RAW)
    assert {entry.patient for entry in data._folds.entries.values()} == {f"P{number}" for number in range(12)}
    assert sorted(data.test.names) == sorted(name for name, _, fold, _ in rows if fold == 2)


def test_a_second_folder_is_the_test_split_by_the_folds_of_the_table(tmp_path):
    for number in range(12):
        write_wfdb(tmp_path / ("other" if number < 4 else "own"), number)
    rows = [(f"r{number}", "ab"[number % 2], 0 if number < 4 else 1 + number % 4 // 2) for number in range(12)]
    write_table(tmp_path / "own", *rows, columns="record,label,fold")
    data = Records([tmp_path / "own", tmp_path / "other"], "labels.csv", folds="labels.csv", **RAW)
    assert data.test.report_names(torch.arange(4)) == ["r0", "r1", "r2", "r3"]
    assert (len(data.train), len(data.validation)) == (4, 4)
    with pytest.raises(DataError, match=r"the folds file few\.csv does not exist"):
        Records(tmp_path / "own", folds="few.csv", **RAW)


def test_other_leads_are_selected_derived_and_reported(tree):
    data = Records(tree, leads=("V1", "aVF", "I", "III"), shares=(1.0, 0.0, 0.0), **RAW)
    signal = data.train.batch([0], 0).inputs.signal[0].numpy()
    number = int(data._selected[0][0].name[1:])
    i, ii, v1 = steps(number)[:3] / 1000
    assert np.allclose(signal, [v1, ii - i / 2, i, ii - i], atol=1e-6)
    assert "  24 without aVF, III, computed from two other limb leads: r0" in data.summary
    assert Records(tree, leads=LEADS, **RAW).train.batch([0], 0).inputs.signal.shape == (1, 12, 200)
    assert Records(tree, leads=("V1",), **RAW).train.batch([0], 0).inputs.signal.shape == (1, 1, 200)


def test_a_view_selects_from_the_leads_of_the_data(tree):
    data = Records(tree, **RAW)
    batch = data.train.batch([0, 1], 0)
    view = Leads(("v2", "II"), among=data.leads)
    assert torch.equal(view(batch)[0][0], batch.inputs.signal[:, [3, 1]])
    assert (view.key, eval(repr(view), {"Leads": Leads})) == (f"leads:V2,II of {','.join(EIGHT)}", view)
    assert view != Leads(("V2", "II"))
    with pytest.raises(RecipeError, match="'aVL' is not a lead of these data"):
        Leads(("aVL",), among=data.leads)
    with pytest.raises(RecipeError, match="expects a signal with 12 leads, got one with 8; among=data"):
        Leads(2)(batch)


def test_a_view_of_leads_in_another_order_is_a_problem(tmp_path):
    for number in range(6):
        write_wfdb(tmp_path, number, leads=LEADS)
    write_table(tmp_path, *[(f"r{number}", "a", f"P{number}") for number in range(6)])
    data = Records(tmp_path, leads=LEADS[::-1], folds=3, **RAW)

    def problems(view):
        student = Net("student", LRHNet(2, 1, width=2), view=view)
        stage = Stage({student: Truth(BCEWithLogitsLoss())}, Training(epochs=1))
        return kdkit.check(Recipe(data=data, schedule=[stage])).problems

    (problem,) = problems(Leads(2))
    assert problem.startswith("the view of net 'student' does not suit the data: Leads(('I', 'II')) selects from I,")
    assert problem.endswith("the data have V6, V5, V4, V3, V2, V1, aVF, aVL, aVR, III, II, I; pass among=data.leads")
    assert not problems(Leads(2, among=data.leads))


def test_a_report_shows_the_leads_of_the_data(tree):
    split = Records(tree, leads=("V2", "I"), **RAW).test
    tensors = split.report_tensors(torch.tensor([1, 0]))
    signal = tensors[SIGNAL]
    assert signal.shape == (2, 12, 200)
    assert torch.equal(signal[:, [7, 0]], split.batch([1, 0], 0).inputs.signal.half())
    assert signal[:, [1, 2, 3, 4, 5, 6, *range(8, 12)]].isnan().all()
    html = paper(signal[0].float().numpy(), 400)
    assert html.count("<text") == 2
    assert "nan" not in html


def test_any_number_and_name_of_leads_is_read(tmp_path):
    fifteen = (*LEADS, "vx", "vy", "vz")
    for number in range(6):
        write_wfdb(tmp_path, number, fifteen)
        write_wfdb(tmp_path, number + 10, ("MLII",))
    write_table(tmp_path, *[(f"r{number}", "ab"[number % 2], "") for number in (*range(6), *range(10, 16))])
    wide, narrow = Records(tmp_path, folds=3, **RAW), Records(tmp_path, folds=3, leads=("MLII",), **RAW)
    assert wide.leads == fifteen
    assert wide.train.batch([0], 0).inputs.signal.shape == (1, 15, 200)
    assert "6 excluded, absent leads: r10 (no I, II" in wide.summary
    assert narrow.train.batch([0], 0).inputs.signal.shape == (1, 1, 200)
    assert narrow.train.report_tensors(torch.tensor([0])) == {}  # none of the twelve


def test_a_store_gives_the_same_samples_for_any_number_of_leads(tree, tmp_path):
    write_table(tree, *[(f"r{number}", "a", "") for number in range(6)], name="few.csv")
    for leads in (("V1",), ("I", "aVL", "V6")):
        # An odd number of samples, of which two make a word of the sums in the store.
        options = {**RAW, "leads": leads, "rate": 257, "length": 129}
        stored, in_memory = (
            Records(tree, "few.csv", folds=3, **{**options, "store": store}) for store in (tmp_path, None)
        )
        for read in range(2):  # the second time by the sums of the blocks
            assert stored.test.batch([0, 1], read).inputs.signal.equal(in_memory.test.batch([0, 1], read).inputs.signal)
        assert stored.prepare(verify=True)[1] == 0
        assert (stored.summary, stored.fingerprint) == (in_memory.summary, in_memory.fingerprint)


def test_a_column_of_0_and_1_for_each_class(tree):
    rows = [
        (f"p{number // 4}/r{number}.hea", number % 2, "1.0", "" if number == 3 else "false") for number in range(24)
    ]
    write_table(tree, *rows, columns="file,AF,normal,noise", name="flags.csv")
    options = {**RAW, "columns": {"record": "file"}, "shares": (1.0, 0.0, 0.0)}
    data = Records(tree, "flags.csv", **options)
    assert data.classes == ("AF", "normal", "noise")
    assert data.train.labels.sum(0).tolist() == [11, 23, 0]  # without the record that has an empty cell
    assert "1 excluded, an empty cell among its labels (unknown=float('nan') keeps the others): p0/r3" in data.summary
    assert Records(tree, "flags.csv", classes=("normal",), **options).train.labels.sum().item() == 24


def test_a_record_with_an_empty_cell_gets_no_advice_that_multiclass_refuses(tree, tmp_path):
    write_table(
        tmp_path, *((f"r{row}", row % 2, (row + 1) % 2) for row in range(23)), ("r23", 0, ""), columns="record,AF,SR"
    )
    data = Records(tree, tmp_path / "labels.csv", task="multiclass", **RAW)
    assert "  1 excluded, no label in the table of labels: p5/r23" in data.summary


def test_a_column_that_is_no_class_because_of_some_values_is_noticed(tree, tmp_path):
    rows = [(f"r{number}", number % 2, (0, 1, "2", "?")[number % 4], number) for number in range(24)]
    write_table(tmp_path, *rows, columns="record,AF,VT,number")
    data = Records(tree, tmp_path / "labels.csv", **RAW)
    assert (data.classes, data.notices) == (
        ("AF",),
        (
            "the column 'VT' of the table of labels is not a class, because it has values other than 0 and 1: 2; if "
            "a number among these means unknown, pass unknown=...",
        ),
    )


@pytest.mark.parametrize(
    ("texts", "shown"), [(("pos", "neg"), "neg, pos"), (("0.9", "0.2"), "0.2, 0.9"), (("x", ""), "x")]
)
def test_a_column_of_two_other_values_or_of_probabilities_is_noticed(tree, tmp_path, texts, shown):
    rows = [(f"r{number}", "yN"[number % 2], texts[number % 2], number, 500) for number in range(24)]
    write_table(tmp_path, *rows, columns="record,AF,VT,number,rate")
    data = Records(tree, tmp_path / "labels.csv", **RAW)
    assert data.classes == ("AF",)
    (notice,) = data.notices
    assert (
        f"the column 'VT' of the table of labels is not a class, because it has values other than 0 and 1: {shown};"
        in notice
    )


@pytest.mark.parametrize(("text", "unknown"), [("", math.nan), ("-1", -1), ("-1.0", -1), ("NA", -1)])
def test_unknown_labels_by_class_are_nan_in_samples_and_leave_the_record_in(tree, tmp_path, text, unknown):
    rows = [(f"r{number}", number % 2, text if number % 4 == 1 else number % 3 // 2) for number in range(23)]
    write_table(tmp_path, *rows, ("r23", text, text), columns="record,AF,VT")
    options = {"unknown": unknown, "folds": 3, **RAW}
    data = Records(tree, tmp_path / "labels.csv", **options)
    assert (data.classes, data.has_unknown, data.notices) == (("AF", "VT"), True, ())
    labels = torch.cat([split.labels for split in (data.train, data.validation, data.test)])
    assert (labels.isnan().sum(0).tolist(), labels.nansum(0).tolist()) == ([0, 6], [11, 5])
    assert "  1 excluded, no label in the table of labels: p5/r23" in data.summary
    loss = Truth(IgnoreUnknown(BCEWithLogitsLoss()))
    stage = Stage({Net("student", LRHNet.for_data(data, width=4)): loss}, Training(epochs=1))
    kdkit.check(Recipe(data=data, schedule=[stage])).require()


def test_a_split_in_which_a_class_is_unknown_or_negative_has_no_positive(tree, tmp_path):
    rows = [(f"r{number}", number % 2, "" if number % 4 else 0, number // 8) for number in range(24)]
    write_table(tmp_path, *rows, columns="record,AF,VT,fold")
    table = tmp_path / "labels.csv"
    data = Records(tree, table, classes=("AF", "VT"), folds=table, unknown=math.nan, **RAW)
    assert data.summary.count("no positive in") == data.summary.count(": VT") == 3


def test_several_rows_of_a_record_are_its_labels(tree):
    write_table(tree, ("r0", "AF"), ("r1", "AF"), ("r0", "other"), columns="record,label", name="long.csv")
    data = Records(tree, "long.csv", shares=(1.0, 0.0, 0.0), **RAW)
    assert data.train.labels.tolist() == [[1, 1], [1, 0]]
    assert "22 excluded, no row in the table of labels: p0/r2" in data.summary


def test_one_class_of_each_record_is_a_task_of_its_own(tree):
    with pytest.raises(DataError, match="6 of 24 have none or several: r10, r14, r18"):
        _ = Records(tree, task="multiclass", **RAW).train
    write_table(tree, *[(f"r{number}", "abc"[number % 3], "") for number in range(24)], name="one.csv")
    data = Records(tree, "one.csv", task="multiclass", **RAW)
    assert data.task == "multiclass"
    assert data.train.labels.sum(1).unique().tolist() == [1]


def test_patients_without_a_name_are_noticed(tree):
    write_table(tree, *[(f"r{number}", "a", "") for number in range(24)], name="nobody.csv")
    data = Records(tree, "nobody.csv", **RAW)
    assert len(data.train) == 14
    assert data.notices == ("the patient of every record is unknown; each counts as a separate patient",)
    assert Records(tree, **RAW).notices == ()


def test_patients_in_the_table_are_not_merged_if_their_records_have_the_names_of_ptb(tmp_path):
    for number in range(6):
        write_wfdb(tmp_path, number, name=f"S{number:04}")
    write_table(tmp_path, *[(f"S{number:04}", "a", f"P{number}") for number in range(6)])  # age and sex: in the headers
    data = Records(tmp_path, folds=3, **RAW)
    assert len(data.make_folds().entries) == 6
    assert data.train.groups is None


def test_ages_and_sexes_that_cannot_be_read_are_noticed(tree, tmp_path):
    rows = [
        ("r0", "a", "P", "300", "1"),
        ("r1", "a", "P", "50", "2"),
        ("r2", "a", "P", "NA", "F"),
        ("r3", "a", "P", "", "1"),
    ]
    write_table(tmp_path, *rows, columns="record,label,patient,age,sex")
    assert [notice.partition(";")[0] for notice in Records(tree, tmp_path / "labels.csv", **RAW).notices] == [
        "the column 'age' of the table of labels has values that are no age or sex: 300",
        "the column 'sex' of the table of labels has values that are no age or sex: 1, 2",
    ]


def test_records_that_the_table_names_in_vain_are_counted(tree):
    write_table(tree, ("r0", "a", ""), ("r99", "a", ""), ("p1/r5.mat", "a", ""), name="lost.csv")
    data = Records(tree, "lost.csv", shares=(1.0, 0.0, 0.0), **RAW)
    assert "  1 records of the table of labels cannot be found or read: r99" in data.summary
    with pytest.raises(DataError, match="strict=True, but records are missing"):
        _ = Records(tree, "lost.csv", shares=(1.0, 0.0, 0.0), strict=True, **RAW).train


@pytest.mark.parametrize("stored", [True, False])
def test_records_of_flat_leads_are_excluded_and_are_not_of_one_person(tmp_path, stored):
    for number in range(6):
        signal = np.zeros((1, 200), int) if number % 2 else steps(number, 1)
        write_matrix(tmp_path, f"r{number}", signal, leads=["I"], record_line=f"r{number} 1 400 200")
    write_table(tmp_path, *[(f"r{number}", "a", f"P{number // 2}") for number in range(6)])
    options = {**RAW, "store": tmp_path / "store" if stored else None}
    data = Records(tmp_path, shares=(1.0, 0.0, 0.0), **options)
    assert data.train.names == ["r0", "r2", "r4"]
    assert data.train.groups is None  # three persons
    assert data.summary.splitlines()[:2] == ["3 of 6 records read", "  3 excluded, no lead with a signal: r1, r3, r5"]


def test_numbers_in_columns_are_the_labels_of_regression(tree, tmp_path):
    rows = [(f"r{number}", f"P{number // 2}", 40 + number / 2, 1e3 - number) for number in range(23)]
    write_table(tmp_path, *rows, ("r23", "P11", "", 1), columns="record,patient,ef,volume")
    options = {"task": "regression", **RAW}
    data = Records(tree, tmp_path / "labels.csv", classes=("volume", "ef"), **options)
    assert (data.task, data.classes) == ("regression", ("volume", "ef"))
    assert "  1 excluded, an empty cell among its labels" in data.summary
    assert "no positive" not in data.summary
    some = Records(tree, tmp_path / "labels.csv", classes=("volume", "ef"), unknown=math.nan, **options)
    volume, ef = torch.cat([split.labels for split in (some.train, some.validation, some.test)]).T
    assert (volume[ef.isnan()].tolist(), len(ef)) == ([1], 24)
    splits = (data.train, data.validation, data.test)
    labels = torch.cat([split.labels for split in splits])
    assert sorted(labels[:, 1].tolist()) == [row[2] for row in rows]
    assert (labels[:, 0] == 1e3 - 2 * (labels[:, 1] - 40)).all()
    means = [split.labels[:, 1].mean().item() for split in splits]
    assert max(means) - min(means) < 4, means  # of values from 40 to 51: folds have equal shares of them
    table = tmp_path / "labels.csv"
    assert data.fingerprint != Records(tree, table, classes=("ef", "volume"), **options).fingerprint
    for classes in ((), ("age",)):
        with pytest.raises(RecipeError, match="regression needs the names of the columns with the numbers"):
            Records(tree, table, classes=classes, **options)
    with pytest.raises(DataError, match=r"expected 0 or 1 in column 'ef', got '40.0'; columns of numbers are"):
        Records(tree, table, classes=("ef",), **RAW)
    expected = r"names of classes in the column 'ef' .* got numbers, such as 40.0; .*classes=\('ef',\)"
    with pytest.raises(DataError, match=expected):
        Records(tree, table, columns={"label": "ef"}, **RAW)
    write_table(tmp_path, ("r0", "high"), columns="record,ef")
    with pytest.raises(DataError, match=r"line 2: expected a number such as 61.5 in column 'ef', got 'high'"):
        Records(tree, table, classes=("ef",), **options)


@pytest.mark.parametrize(
    ("options", "hidden", "shown"),
    [
        ({"task": "regression", "classes": ("Age", "ef")}, "age", [0, 0, 0, 1, 1]),
        ({"columns": {"label": "sex"}}, "sex", [0.5, 1, 0, 0, 0]),
        ({"classes": ("is_male",)}, "sex", [0.5, 1, 0, 0, 0]),
        ({"classes": ("is_male",), "columns": {"sex": "is_male"}}, "sex", [0.5, 1, 0, 0, 0]),
    ],
)
def test_ages_and_sexes_that_are_labels_are_no_inputs(tmp_path, options, hidden, shown):
    for number in range(6):  # age 50 and sex male in the header
        write_wfdb(tmp_path, number)
    rows = [(f"r{number}", f"P{number}", 50, "M", 1, number) for number in range(6)]
    write_table(tmp_path, *rows, columns="record,patient,Age,sex,is_male,ef")
    data = Records(tmp_path, folds=3, **options, **RAW)
    assert data.train.person.tolist() == [shown] * len(data.train)
    assert data.notices == (f"the {hidden} of a person is a label, so networks do not get it",)
    assert data.preparation["person"]["features"].count("0") == {"age": 2, "sex": 3}[hidden]
    assert "0" not in Records(tmp_path, task="regression", classes=("ef",), **RAW).preparation["person"]["features"]


def test_ages_under_another_name_that_are_labels_are_noticed(tmp_path):
    for number in range(6):  # age 50 in the header
        write_wfdb(tmp_path, number)
    rows = [(f"r{number}", f"P{number}", 50.4, number) for number in range(6)]
    write_table(tmp_path, *rows, columns="record,patient,years,ef")
    options = {"task": "regression", "classes": ("years", "ef"), "folds": 3, **RAW}
    data, hidden = Records(tmp_path, **options), Records(tmp_path, columns={"age": "years"}, **options)
    assert len(data.train) == len(hidden.train)
    (notice,) = data.notices
    assert "the column 'years' of the table of labels are the ages, which networks get as an input" in notice
    assert hidden.notices == ("the age of a person is a label, so networks do not get it",)


def test_files_in_formats_that_are_not_read_are_counted(tmp_path):
    for number in range(2):
        write_wfdb(tmp_path, number)
    for name in ("r0.scp", "r2.scp", "r3.SCP", "r4.mwf", "notes.txt"):  # the first one is another form of r0
        (tmp_path / name).touch()
    write_table(tmp_path, *((f"r{number}", "a", "") for number in range(2)))
    options = {"shares": (1.0, 0.0, 0.0), **RAW}
    line = "  files of formats that are not read: 2 .scp, 1 .mwf; export them as DICOM, HL7 aECG, EDF or WFDB"
    assert Records(tmp_path, **options).summary.splitlines()[:2] == ["2 of 2 records read", line]
    with pytest.raises(DataError, match="strict=True, but records are missing"):
        _ = Records(tmp_path, strict=True, **options).train


def test_signals_without_a_header_that_the_table_names_are_counted(tmp_path):
    for name in ("r0.mat", "a/r1.mat", "r2.dat", "other.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_table(tmp_path, ("r0", "a", ""), ("a/r1", "a", ""), ("r2", "a", ""))
    with pytest.raises(DataError, match=r"files of formats that are not read: 2 \.mat, 1 \.dat; export them as DICOM"):
        Records(tmp_path, **RAW)


def test_a_name_of_two_files_is_refused_unless_the_path_is_given(tmp_path):
    for number in range(2):
        write_wfdb(tmp_path / f"p{number}", number, name="ecg")
    write_table(tmp_path, ("ecg", "a", ""))
    with pytest.raises(DataError, match=r"names the record 'ecg', but there are 2, such as .*p0.*write their paths"):
        _ = Records(tmp_path, leads=EIGHT, **RAW).train
    write_table(tmp_path, ("ecg", "a", "p1"), columns="record,label,database")
    assert Records(tmp_path, leads=EIGHT, **RAW)._labelled[0][0].path == tmp_path / "p1" / "ecg.hea"
    (tmp_path / "p1").rename(tmp_path / "1.0.0")  # a version and not a number that pandas wrote as 1.0.0
    write_table(tmp_path, ("ecg", "a", "1.0.0"), columns="record,label,database")
    assert Records(tmp_path, leads=EIGHT, **RAW)._labelled[0][0].path == tmp_path / "1.0.0" / "ecg.hea"
    (tmp_path / "1.0.0").rename(tmp_path / "p1")
    write_table(tmp_path, ("p0/ecg", "a", ""), ("p1\\ecg.hea", "b", ""))
    data = Records(tmp_path, shares=(1.0, 0.0, 0.0), **RAW)
    assert [source.name for source in data._selected[0]] == ["p0/ecg", "p1/ecg"]
    assert len(data.train) == 2


def test_two_rows_that_name_one_file_are_refused(tmp_path):
    write_wfdb(tmp_path / "a", 1)
    write_table(tmp_path, ("r1", "AF", "P"), ("a/r1", "normal", "P"))
    with pytest.raises(DataError, match=r"names the file .*r1.hea twice, as 'r1' and 'a/r1'"):
        Records(tmp_path, **RAW)


def test_a_path_in_two_folders_is_refused_unless_the_database_is_given(tmp_path):
    folders = [tmp_path / "own", tmp_path / "other"]
    for number, folder in enumerate(folders):
        write_wfdb(folder / "2020", number, name="r0")
    write_table(folders[0], ("r0", "a", "other"), columns="record,label,database")
    assert Records(folders, leads=EIGHT, **RAW)._labelled[0][0].path == folders[1] / "2020" / "r0.hea"
    for record in ("r0", "2020/r0"):
        write_table(folders[0], (record, "a", ""))
        with pytest.raises(DataError, match=r"there are 2, such as .*own.* and .*other.*pass a folder above both"):
            _ = Records(folders, leads=EIGHT, **RAW).train
    (tmp_path / "link").symlink_to(folders[0])
    data = Records([*folders[:1], tmp_path / "link", folders[0] / "2020"], shares=(1.0, 0.0, 0.0), **RAW)
    assert len(data.train) == 1


def test_the_fingerprint_depends_on_labels_leads_and_classes_but_not_on_the_place(tree, tmp_path):
    (tmp_path / "labels.csv").write_bytes((tree / "labels.csv").read_bytes())
    first = Records(tree, **RAW).fingerprint
    assert Records(tree, tmp_path / "labels.csv", **RAW).fingerprint == first
    others = [{"leads": ("I", "II")}, {"classes": ("AF",)}, {"classes": ("normal", "AF", "other")}, {"fold": 1}]
    assert len({first, *(Records(tree, **other, **RAW).fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a first line with a different name for each column"),
        ("record,label\n", "has no row below its first line"),
        ("record,record\n1,2\n", "a different name for each column, got 'record,record'"),
        (
            "name,label\nr0,a\n",
            r"no column of records; it has name, label\. Name one, such as columns={'record': 'name'}",
        ),
        ("record,text\nr0,some words\n", "neither a column 'label' nor columns of 0 and 1"),
        ("record,label\nr0,\n", "has no label in its column 'label'"),
        ("record,label,patient\nr0,a,1\nr0,b,2\n", "line 3: record 'r0' has another, different row"),
        ("record,a,b\nr0,0,1\nr0,1,1\n", "line 3: record 'r0' has another, different row"),
        (
            "record,label\nr99,a\n",
            r"no record in .* has a label in .*labels\.csv, whose records are r99; the files are x:",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, text, message):
    write_wfdb(tmp_path, 0, name="x")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _ = Records(tmp_path, **RAW).train


def test_a_wrong_flag_is_named_with_its_line(tmp_path):
    (tmp_path / "labels.csv").write_text("record,a,b\nr0,0,1\nr1,2,1\n")
    with pytest.raises(DataError, match=r"line 3: expected 0 or 1 in column 'a', got '2'"):
        Records(tmp_path, classes=("a", "b"), **RAW)
    (tmp_path / "labels.csv").write_text("record,a,b\nr0,0,\nr1,1,\n")
    with pytest.raises(
        DataError, match=r"labels.csv has no known label in the column 'b'; leave it out of the classes"
    ):
        Records(tmp_path, classes=("a", "b"), unknown=-1, **RAW)


def test_a_table_is_read_with_any_delimiter_a_byte_order_mark_and_windows_lines(tree, tmp_path):
    text = "record;labels;patient\r\nr0;AF | other;1.0\r\nr1;a, b;2\r\n"
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = Records(tree, tmp_path / "table.csv", shares=(1.0, 0.0, 0.0), **RAW)
    assert data.classes == ("AF", "a", "b", "other")
    assert data.train.labels.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert [source.patient for source in data._selected.sources] == ["1", "2"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (("{'NORM': 100.0, 'SR': 0.0}", "{'AFIB': 50.0}"), [["NORM", "SR"], ["AFIB"]]),  # PTB-XL
        (("{'AF': 1, 'VT': 0}", "{'AF': False, 'VT': True}", "{'AF': 0}"), [["AF"], ["VT"], []]),
        (('{"AF": true, "VT": false}', '{"VT": true}'), [["AF"], ["VT"]]),  # JSON
        (('{"AF": true, "VT": false}', '{"VT": true, "AF": null}', "{'VT': True}"), [["AF"], ["VT"]]),  # one unknown
        (('["a, b", "c"]', "['c']"), [["a, b", "c"], ["c"]]),
        (("['a' 'b']", "['b'\n 'c']"), [["a", "b"], ["b", "c"]]),  # the repr of an array of NumPy
        (("[164889003, 426783006]", "[164889003]"), [["164889003", "426783006"], ["164889003"]]),
        (("[164889003 426783006]", "[164889003]"), [["164889003", "426783006"], ["164889003"]]),  # NumPy
        (("[AF, other]", "('AF',)"), [["AF", "other"], ["AF"]]),  # without quotes, and a tuple
        (("(AFIB", "[VT;(N"), [["(AFIB"], ["(N", "[VT"]]),  # no lists, but names of rhythms
        (("{[1]: 2}", "b"), [["{[1]: 2}"], ["b"]]),  # which Python cannot evaluate
    ],
)
def test_labels_may_be_a_list_or_a_dict(tree, tmp_path, cells, labels):
    write_table(tmp_path, *[(f"r{number}", cell) for number, cell in enumerate(cells)], columns="record,Labels")
    data = Records(tree, tmp_path / "labels.csv", shares=(1.0, 0.0, 0.0), **RAW)
    assert data.classes == tuple(sorted({label for names in labels for label in names}))
    rows = [[name for name, flag in zip(data.classes, row, strict=True) if flag] for row in data.train.labels]
    assert rows == labels


def test_the_labels_of_a_set_have_the_same_order_in_every_process(tmp_path):
    names = [f"class{number}" for number in range(9)]
    write_table(tmp_path, ("r0", repr(set(names)), ""))
    assert read_label_table(tmp_path / "labels.csv", {}, ()).rows["r0"].labels == tuple(names)


def test_a_class_may_have_a_name_that_else_means_a_missing_label(tree, tmp_path):
    write_table(tmp_path, *[(f"r{number}", ("AF", "none")[number % 2], "") for number in range(24)])
    table, options = tmp_path / "labels.csv", {"shares": (1.0, 0.0, 0.0), **RAW}
    data = Records(tree, table, classes=("AF", "none"), task="multiclass", **options)
    assert data.train.labels.sum(0).tolist() == [12, 12]
    assert "12 excluded, no label in the table of labels" in Records(tree, table, **options).summary


def test_an_empty_list_is_no_label(tree, tmp_path):
    write_table(tmp_path, ("r0", "[]", ""), ("r1", "['a']", ""))
    data = Records(tree, tmp_path / "labels.csv", shares=(1.0, 0.0, 0.0), **RAW)
    assert "1 excluded, no label in the table of labels: p0/r0" in data.summary


@pytest.mark.parametrize("column", ["Patient", "patient_id", "Subject_ID", "subject"])
def test_columns_are_found_by_their_usual_names_in_any_case(tree, tmp_path, column):
    rows = [(f"r{number}", number % 2, f"P{number // 2}", 40 + number, "F", "") for number in range(24)]
    write_table(tmp_path, *rows, columns=f"Record,AF,{column},Age,Gender,remarks")
    data = Records(tree, tmp_path / "labels.csv", **RAW)
    assert data.classes == ("AF",)  # the column of remarks is empty, and no class
    assert data.train.groups.unique(return_counts=True)[1].tolist() == [2] * (len(data.train) // 2)
    assert data.train.person[:, 1:].tolist() == [[1, 1, 0, 1]] * len(data.train)
    assert data.notices == ()


def test_names_with_accents_are_found_in_either_form_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    write_wfdb(tmp_path, 0).rename(tmp_path / f"{decomposed}.hea")
    write_table(tmp_path, (composed, "a", ""))
    assert Records(tmp_path, leads=EIGHT, **RAW)._labelled[0][0].name == composed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("AFib",)}, "has no class 'AFib'; did you mean 'AF'"),
        ({"classes": ("AF", "AF")}, "classes must be different names"),
        ({"classes": "AF"}, "classes must be names in a tuple"),
        ({"leads": "II"}, "leads must be names in a tuple"),
        ({"leads": ("II", "ii")}, "expected every lead once, got 'II' twice"),
        ({"leads": LEADS[::-1], "augment": (Sometimes(PowerLine()),)}, "needs the leads I, .* in this order; got V6"),
        ({"arrays": {"rate": 400}}, r"arrays must be an ArrayFormat.* or None, got {'rate': 400}"),
        ({"columns": ["exam_id"]}, "columns must be a dict such as"),
        ({"columns": {"patients": "patient"}}, "unknown key 'patients'; did you mean 'patient'"),
        ({"columns": {"patient": "pat"}}, "has no column 'pat'; did you mean 'patient'"),
        ({"unknown": "NA"}, "unknown must be the number that means an unknown label.* got 'NA'"),
        ({"unknown": 0}, "unknown must be the number that means an unknown label.* got 0"),
        ({"unknown": -1, "task": "multiclass"}, "unknown is for a column of 0 and 1 for each class"),
        ({"unknown": -1}, "column 'label' of .*labels.csv has names of classes"),
        ({"task": "ranking"}, "task must be 'multilabel' or 'multiclass' or 'regression'; got 'ranking'"),
    ],
)
def test_options_that_do_not_exist_are_refused(tree, options, message):
    with pytest.raises(RecipeError, match=message):
        Records(tree, **{**RAW, **options})


def test_a_table_and_a_folder_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(DataError, match=r"table of labels .*labels\.csv does not exist.*headers.*use Challenge2020"):
        Records(tmp_path)
    with pytest.raises(DataError, match="does not exist; expected one that contains the records"):
        Records(tmp_path / "none")
