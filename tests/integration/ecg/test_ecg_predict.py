"""`kdkit predict` and `kdkit_ecg.Predictor` with exported networks: rates, leads, files, and refused records."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch

import kdkit
from kdkit import DataError, KdkitError, RecipeError
from kdkit.cli.main import call
from kdkit_ecg import Predictor, Records
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.array_files import ArrayFormat
from kdkit_ecg.records.open_file import open_file
from kdkit_ecg.simulator import Simulator
from tests.helpers.command_line import ROOT
from tests.helpers.hospital_files import dicom_group, muse_xml, write_dicom
from tests.helpers.own_records import CLASSES, EIGHT, save_weights, untrained, write_own_records, write_signal

QUICK = kdkit.ExportOptions(points=100, finish_epochs=0, timing_seconds=0, calibration=8)


def without_torch(program, folder):
    """Run a program in a new process that cannot import torch, and return what it prints."""
    (folder / "torch.py").write_text("raise ImportError('torch is blocked')\n")
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def exported(folder):
    """The recipe of a network in the file out/student.onnx, with its weights loaded."""
    write_own_records(folder / "data", length=1200)
    recipe = untrained(folder / "data")
    save_weights(recipe, folder / "weights.safetensors")
    kdkit.export_net(recipe, folder / "weights.safetensors", out=folder / "out", options=QUICK)
    return recipe


@pytest.fixture(scope="module")
def model(folder, exported):
    return folder / "out" / "student.onnx"


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


def simulated(id, *, rate=500, length=5000):
    return Simulator(seed=5, rate=rate, length=length, difficulty=0.3).record(id).signal


@pytest.mark.parametrize(("rate", "leads"), [(500, LEADS[::-1]), (1000, (*EIGHT[2:], "aVF", "III")), (250, EIGHT)])
def test_a_record_has_the_probabilities_that_the_net_gives_the_sample_of_its_data_set(
    tmp_path, exported, model, rate, leads
):
    rows = [("record", "label", "patient")]
    for id in range(9):
        signal = simulated(id, rate=rate, length=(3 if id % 2 else 1) * rate)  # longer and shorter than a window
        write_signal(
            tmp_path, f"r{id}", signal[[LEADS.index(lead) for lead in leads]], rate=rate, leads=leads,
            comments=[f"Age: {40 + id}", "Sex: Female"],
        )  # fmt: skip
        rows.append((f"r{id}", CLASSES[id % 3], f"p{id}"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    dataset = Records(tmp_path, shares=(0.0, 0.3, 0.7), rate=100, length=200, leads=EIGHT, store=None)
    expected = {}
    (student,) = exported.stages[0].objectives
    for split in (dataset.validation, dataset.test):
        index = torch.arange(len(split))
        batch = split.batch(index, 0)
        with torch.no_grad():
            outputs = torch.sigmoid(student.network.eval()(*batch.inputs)).double().numpy()
        expected.update(zip(split.report_names(index), outputs, strict=True))
    assert len(expected) == 9
    predictor = Predictor(model, combine="centre")
    for name, probabilities in expected.items():
        prediction = predictor.predict(tmp_path / name)
        assert np.abs(prediction.probabilities - probabilities).max() < 1e-5
        assert set(prediction.derived) == set(EIGHT) - set(leads)
    assert np.std([*expected.values()], axis=0).max() > 0.01  # otherwise any record would give these


@pytest.mark.slow
def test_formats_agree(folder, exported, predictor):
    weights = folder / "weights.safetensors"
    kdkit.export_net(exported, weights, to=("onnx-int8", "pt2"), out=folder / "out", options=QUICK)
    record = folder / "data" / "day0" / "ecg0"
    expected = predictor.predict(record).probabilities
    assert np.abs(Predictor(folder / "out" / "student.pt2").predict(record).probabilities - expected).max() < 1e-5
    assert np.abs(Predictor(folder / "out" / "student-int8.onnx").predict(record).probabilities - expected).max() < 0.1


def test_a_net_with_weights_predicts_as_its_export(folder, exported, predictor):
    unexported = Predictor.from_run(lambda: untrained(folder / "data"), folder / "weights.safetensors")
    record = folder / "data" / "day1" / "ecg1"
    first, second = predictor.predict(record), unexported.predict(record)
    assert np.abs(first.probabilities - second.probabilities).max() < 1e-5
    assert first.thresholds == second.thresholds
    assert next(row.record for row in unexported.predict_all([folder / "data" / "day1"])).endswith("day1/ecg1")


def test_windows_of_a_long_record_cover_it_and_are_combined(model):
    signal = simulated(1, rate=100, length=550)[[LEADS.index(lead) for lead in EIGHT]]
    options = {"rate": 100, "leads": EIGHT}
    mean, largest, centre = (
        Predictor(model, combine=combine).predict_array(signal, **options) for combine in ("mean", "max", "centre")
    )
    assert mean.starts == (0.0, 1.75, 3.5)  # windows of 2 s in 5.5 s
    assert centre.starts == (1.75,)
    assert np.allclose(mean.probabilities, mean.windows.mean(0))
    assert np.allclose(largest.probabilities, mean.windows.max(0))
    assert np.allclose(centre.probabilities, mean.windows[1], atol=1e-6)
    assert (mean.decisions == (mean.probabilities >= mean.thresholds)).all()


def test_an_array_may_have_either_axis_first_any_unit_and_gaps(predictor):
    signal = simulated(2, length=1000)[[LEADS.index(lead) for lead in EIGHT]].astype(np.float64)
    options = {"rate": 500, "leads": [f"Lead {lead}" for lead in EIGHT]}
    expected = predictor.predict_array(signal, unit="mV", **options).probabilities
    assert np.allclose(
        predictor.predict_array(signal.T * 1000, unit="uV", **options).probabilities, expected, atol=1e-5
    )
    gap = signal.copy()
    gap[3, 100] = np.nan
    assert np.abs(predictor.predict_array(gap, **options).probabilities - expected).max() < 0.05
    for wrong, match in (
        (signal[:5], "8 leads"),
        (signal[0], "two axes"),
        (np.zeros_like(signal), "flat"),
        (signal[:, :9], "5%"),
    ):
        with pytest.raises(DataError, match=match):
            predictor.predict_array(wrong, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "500"}, "rate must be a finite number above 0; got '500'"),
        ({"leads": "I,II"}, "leads must be the names"),
        ({"leads": ()}, "leads must be the names"),
        ({"unit": 1}, "unit=1 is not a unit"),
        ({"age": "71"}, "from 0 to 120, or None if it is unknown, got '71'"),
        ({"age": 300}, "from 0 to 120"),
        ({"sex": "F"}, "sex must be 'female' or 'male'; got 'F'"),
        ({"signal": np.ones((8, 1000), complex)}, "values of type complex128"),
        ({"signal": [["x"]]}, "expected integers or real numbers"),
    ],
)
def test_options_of_an_array_that_mean_nothing_are_refused(predictor, options, message):
    with pytest.raises(KdkitError, match=message):
        predictor.predict_array(**{"signal": np.ones((8, 1000)), "rate": 500, "leads": EIGHT, **options})


def test_a_text_is_one_path(folder, predictor, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "data"))
    for path in (str(folder / "data" / "day1" / "ecg1"), "~/day1/ecg1"):
        [prediction] = predictor.predict_all(path)
        assert prediction.reason is None


def test_a_network_that_fails_refuses_the_record(tmp_path, folder, model):
    def change(metadata):
        metadata["inputs"][0]["name"] = "signals"

    [prediction] = Predictor(changed(model, tmp_path / "changed.onnx", change)).predict_all(folder / "data/day1/ecg1")
    assert "the network fails for (2, 8, 200)" in prediction.reason


def test_processes_refuse_a_file_that_was_replaced_while_it_was_in_use(tmp_path, folder, model):
    path = tmp_path / "student.onnx"
    shutil.copy(model, path)
    opened = Predictor(path)
    changed(model, path, lambda metadata: metadata["thresholds"]["probabilities"].__setitem__(0, 0.0))
    with pytest.raises(DataError, match="was replaced while it was in use"):
        list(opened.predict_all([folder / "data"], processes=2))


def test_no_record_or_network_is_replaced_by_predictions(tmp_path, folder, model, capsys):
    (tmp_path / "table.csv").write_text("I,II\n1,2\n")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a.scp").write_bytes(b"SCP-ECG, which is not read")
    own = [tmp_path / name for name in ("table.csv", "IM0001", "a.scp")]
    for path in (folder / "data" / "day1" / "ecg1.dat", model, *own):
        before = path.read_bytes()
        assert call(["predict", str(model), str(tmp_path / "table.csv"), "--rate", "100", "--out", str(path)]) == 2
        assert "has the name of a record or of a network" in capsys.readouterr().err
        assert path.read_bytes() == before
    # A record, or the table of labels, in a folder that is an argument.
    assert call(["predict", str(model), str(tmp_path), "--rate", "100", "--out", str(tmp_path / "table.csv")]) == 2
    assert "exists, and has no predictions; choose another name" in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text() == "I,II\n1,2\n"


@pytest.fixture
def mixed(tmp_path, folder, exported):
    """A folder with a usable record, one without leads V1 to V6, a damaged header, a lost signal and a lost header."""
    target = tmp_path / "mixed"
    shutil.copytree(folder / "data" / "day0", target)
    for path in sorted(target.glob("ecg*"))[2 * 2 :]:
        path.unlink()
    write_signal(target, "limb", simulated(3)[:6], rate=500, leads=LEADS[:6])
    (target / "damaged.hea").write_text("damaged 8 fast\n")
    write_signal(target, "lost", simulated(3), rate=500, leads=LEADS)
    (target / "lost.dat").unlink()
    (target / "alone.mat").write_bytes(b"0" * 100)
    return target


def test_each_record_of_a_folder_has_a_row_or_a_reason(mixed, model, capsys):
    assert call(["predict", str(model), str(mixed), str(mixed / "missing"), "--format", "json"]) == 1
    rows = {row["record"].rsplit("/", 1)[1]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    reasons = {name: row["refused"] for name, row in rows.items()}
    served = [name for name, reason in reasons.items() if reason is None]
    assert len(served) == 2
    assert all(name.startswith("ecg") for name in served)
    assert {name for name in reasons if name not in served} == {"limb", "damaged", "lost", "alone.mat", "missing"}
    assert "lacks V1, V2" in reasons["limb"]
    assert "predict_array" not in reasons["limb"]
    assert "header" in reasons["damaged"]
    assert "lost.dat" in reasons["lost"]
    assert "no header" in reasons["alone.mat"]
    assert "not exist" in reasons["missing"]
    for name in served:
        for by_class in rows[name]["classes"].values():
            assert by_class["decision"] == (by_class["probability"] >= by_class["threshold"])


def test_a_lead_of_another_name_is_refused_with_the_remedy(predictor, tmp_path):
    write_signal(tmp_path, "watch", simulated(3)[:1], rate=500, leads=("ECG1",))
    with pytest.raises(DataError, match="got I, which do not give"):  # its axis is the time
        predictor.predict_array(simulated(3)[0], rate=500, leads=("I",))
    with pytest.raises(DataError, match="from its leads ECG1; if one has another name, rename it, or pass the signal"):
        predictor.predict(tmp_path / "watch")


def test_csv_and_the_table_have_what_json_has(mixed, model, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    for _ in range(2):  # predictions may replace earlier ones
        assert call(["predict", str(model), str(mixed), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"6 records: 2 predicted, 4 refused; saved to {out}\n")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {*(f"{name} probability" for name in CLASSES)} <= set(rows[0])
    served = [row for row in rows if not row["refused"]]
    assert all(0 < float(row[f"{name} probability"]) < 1 for row in served for name in CLASSES)
    assert call(["predict", str(model), str(mixed)]) == 1
    table = capsys.readouterr().out
    assert "6 records: 2 predicted, 4 refused" in table
    assert table.count("REFUSED") == 4
    assert "thresholds: arrhythmia" in table
    assert "2 in several windows of 2 s: the mean of their probabilities" in table
    assert "not a medical device" in table
    assert call(["predict", str(model), str(mixed / served[0]["record"].rsplit("/", 1)[1])]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in CLASSES)


def test_files_of_hospitals_are_predicted_as_wfdb_records(tmp_path, predictor):
    steps = (1000 * simulated(3, length=1200)).round().astype(int)
    write_signal(tmp_path, "wfdb", steps / 1000, rate=500, leads=LEADS)
    write_dicom(tmp_path / "IM0001", [dicom_group(steps, LEADS, 500)])
    limb = [1, 2, *range(6, 12)]  # without lead I, which follows from II and III
    (tmp_path / "b.XML").write_text(muse_xml(steps[limb], np.array(LEADS)[limb], 500, ("", "", "")), "latin-1")
    (tmp_path / "c.xml").write_text("<html/>")
    write_dicom(tmp_path / "d.dcm", [], sop_class="CTImageStorage")
    rows = {Path(row.record).name: row for row in predictor.predict_all(tmp_path)}
    reasons = {name: row.reason for name, row in rows.items()}
    assert {name for name, reason in reasons.items() if reason is None} == {"wfdb", "IM0001", "b.XML"}
    assert "got 'html'" in reasons["c.xml"]
    assert "got 'CT Image Storage' with no waveform" in reasons["d.dcm"]
    assert rows["b.XML"].derived == ("I",)
    assert predictor.predict(tmp_path / "IM0001").probabilities.tolist() == rows["IM0001"].probabilities.tolist()
    for name in ("IM0001", "b.XML"):
        assert np.allclose(rows[name].probabilities, rows["wfdb"].probabilities, atol=1e-3)


def test_of_files_with_one_name_in_a_folder_the_best_described_one_is_predicted(tmp_path, predictor):
    steps = (1000 * simulated(3, length=1200)).round().astype(int)
    write_dicom(tmp_path / "A1.dcm", [dicom_group(steps, LEADS, 500)])
    (tmp_path / "A1.xml").write_text(muse_xml(steps, LEADS, 500, ("", "", "")), "latin-1")
    np.save(tmp_path / "A1.npy", steps)
    assert [(row.record, row.reason) for row in predictor.predict_all(tmp_path)] == [(str(tmp_path / "A1.dcm"), None)]


def test_arrays_need_a_rate_and_leads(tmp_path, model, capsys):
    signals = np.stack([simulated(id, length=1000) for id in range(2)])
    np.save(tmp_path / "stack.npy", signals)
    np.savez_compressed(tmp_path / "both.npz", first=signals[0], second=signals[1].T, labels=np.zeros(3))
    np.savetxt(tmp_path / "table.csv", signals[0].T, delimiter=",", header=",".join(LEADS), comments="")
    (tmp_path / "labels.csv").write_text("record,label\nfirst,AF\n")
    options = ["--rate", "500", "--leads", ",".join(LEADS), "--format", "json"]
    assert call(["predict", str(model), str(tmp_path), *options]) == 0
    rows = {row["record"].rsplit("/", 1)[1]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {"stack.npy:0", "stack.npy:1", "both.npz:first", "both.npz:second", "table.csv"}
    probabilities = {
        name: [by_class["probability"] for by_class in row["classes"].values()] for name, row in rows.items()
    }
    assert probabilities["stack.npy:0"] == probabilities["both.npz:first"]
    assert probabilities["stack.npy:1"] == probabilities["both.npz:second"]
    assert np.allclose(probabilities["table.csv"], probabilities["stack.npy:0"], atol=1e-5)
    assert call(["predict", str(model), str(tmp_path)]) == 1  # the tables in it may be anything
    table = capsys.readouterr().out
    assert table.count("REFUSED: it does not state its rate and leads") == 2
    assert "2 records: 0 predicted, 2 refused" in table
    assert call(["predict", str(model), str(tmp_path / "stack.npy"), "--rate", "500"]) == 1
    assert "no names of leads; give --leads" in capsys.readouterr().out


def test_a_dataset_of_an_hdf5_file_may_have_any_name(tmp_path, model, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ekg"] = simulated(0, length=1000).T
    command = ["predict", str(model), str(tmp_path / "a.h5"), "--rate", "500", "--leads", ",".join(LEADS)]
    assert call(command) == 1
    assert "expected a dataset 'tracings' in this file; it has 'ekg'; name one by --signals" in capsys.readouterr().out
    assert call([*command, "--signals", "ekg"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{data}", "--leads", "I,II"], "need --rate"),
        (["{model}", "{data}", "--signals", "ekg"], "need --rate"),
        (["{model}", "{data}", "--net", "student"], "for the folder of a run"),
        (["{data}/labels.csv", "{data}"], "is not an exported network"),
        (["missing.onnx", "{data}"], "does not exist"),
        (
            ["runs/missing", "{data}"],
            "does not exist; expected a file of kdkit export (.onnx or .pt2), or the folder of",
        ),
        (["{model}", "{empty}"], "no record in"),
        (["{exports}", "{data}"], "is a folder of exported files"),
        (["{model}", "{data}", "--rate", "500", "--unit", "kg"], "not a unit"),
    ],
)
def test_errors_of_usage_end_with_2_and_write_nothing(arguments, message, tmp_path, folder, model, capsys):
    (tmp_path / "empty").mkdir()
    paths = {"model": model, "data": folder / "data", "empty": tmp_path / "empty", "exports": model.parent}
    texts = [text.format(**paths) for text in arguments]
    assert call(["predict", *texts, "--out", str(tmp_path / "out.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_an_archive_that_is_no_export_is_refused_without_a_traceback_of_torch(tmp_path, folder, capfd):
    path = tmp_path / "student.pt2"
    for write in (lambda: path.write_bytes(b"hello"), lambda: torch.save({"weight": torch.zeros(1)}, path)):
        write()
        assert call(["predict", str(path), str(folder / "data")]) == 2
        error = capfd.readouterr().err
        assert "is damaged, or no archive" in error
        assert len(error.splitlines()) == 1


def changed(model, path, change):
    """Write a copy of a model whose metadata are changed."""
    proto = onnx.load(model)
    metadata = json.loads(proto.metadata_props[0].value)
    change(metadata)
    proto.metadata_props[0].value = json.dumps(metadata)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda metadata: metadata["preparation"]["steps"].insert(1, {"step": "notch", "frequency": 50}),
            "cannot follow",
        ),
        (lambda metadata: metadata["preparation"]["steps"][2].update(order=5), "cannot follow"),
        (lambda metadata: metadata["preparation"].clear(), "got no description; run networks on other data"),
        (lambda metadata: metadata.update(format=9), "format 1, got 9"),
        (lambda metadata: metadata.pop("classes"), "damaged"),
        (lambda metadata: metadata["preparation"].update(rate=0), "damaged"),
        (lambda metadata: metadata["preparation"]["person"]["features"].reverse(), "cannot follow"),
        (lambda metadata: metadata["preparation"].update(scaling="minmax"), "damaged"),
        (lambda metadata: metadata["thresholds"]["logits"].pop(), "a threshold for each of 3"),
        (lambda metadata: metadata.update(task="regression"), "got 'regression' with 'sigmoid'"),
        (lambda metadata: metadata["inputs"].append({"name": "x", "shape": [1, 2, 3, 4]}), "expected the inputs"),
    ],
)
def test_a_file_that_cannot_be_followed_to_the_letter_is_refused(tmp_path, model, change, message):
    with pytest.raises(DataError, match=message):
        Predictor(changed(model, tmp_path / "changed.onnx", change))


def test_a_network_that_does_not_use_age_and_sex_may_take_any_number_of_them(tmp_path, model, predictor):
    def change(metadata):
        (person,) = (item for item in metadata["inputs"] if len(item["shape"]) == 2)
        person["shape"][1] = "length_2"

    changed_predictor = Predictor(changed(model, tmp_path / "changed.onnx", change))
    signal, options = simulated(3), {"rate": 500, "leads": LEADS, "unit": "mV", "age": 71, "sex": "female"}
    windows = [used.predict_array(signal, **options).windows for used in (changed_predictor, predictor)]
    assert np.array_equal(*windows)


def test_a_class_without_a_threshold_is_never_predicted(tmp_path, folder, model, predictor):
    def change(metadata):
        metadata["thresholds"]["logits"][0] = metadata["thresholds"]["probabilities"][0] = None

    never = Predictor(changed(model, tmp_path / "changed.onnx", change))
    rows = list(never.predict_all([folder / "data"]))
    assert not any(row.decisions[0] for row in rows)
    assert any(row.decisions[0] for row in predictor.predict_all([folder / "data"]))
    assert rows[0].by_class()[CLASSES[0]]["threshold"] is None


def test_ages_that_were_hidden_in_training_are_hidden_from_a_prediction(tmp_path, model, predictor):
    def change(metadata):
        metadata["preparation"]["person"]["features"][:2] = ["0", "0"]

    changed_predictor = Predictor(changed(model, tmp_path / "changed.onnx", change))
    signal, options = simulated(3), {"rate": 500, "leads": LEADS, "unit": "mV", "sex": "female"}
    with_age, without_age = (predictor.predict_array(signal, age=age, **options).windows for age in (71, None))
    assert not np.array_equal(with_age, without_age)
    assert np.array_equal(changed_predictor.predict_array(signal, age=71, **options).windows, without_age)


def multiclass(metadata):
    metadata.update(task="multiclass", thresholds=None)
    metadata["output"]["activation"] = "softmax"


def test_of_exclusive_classes_the_most_probable_one_is_predicted(tmp_path, folder, model):
    path = changed(model, tmp_path / "changed.onnx", multiclass)
    for row in Predictor(path).predict_all([folder / "data" / "day0"]):
        assert np.isclose(row.probabilities.sum(), 1)
        assert row.predicted == (CLASSES[row.probabilities.argmax()],)
        assert row.by_class()[CLASSES[0]]["threshold"] is None
    with pytest.raises(KdkitError, match="classes that exclude each other"):
        Predictor(path, combine="max")


def regression(metadata):
    metadata.update(task="regression", thresholds=None)
    metadata["output"]["activation"] = None


def test_numbers_of_a_regression_are_the_mean_of_the_windows(mixed, tmp_path, model, predictor, capsys):
    path = changed(model, tmp_path / "changed.onnx", regression)
    rows = [row for row in Predictor(path).predict_all(mixed) if row.reason is None]
    for row, classified in zip(rows, filter(lambda row: row.reason is None, predictor.predict_all(mixed)), strict=True):
        np.testing.assert_allclose(1 / (1 + np.exp(-row.windows)), classified.windows, rtol=1e-6)
        assert len(row.windows) > 1
        np.testing.assert_allclose(row.values, row.windows.mean(0))
        assert row.predicted == row.thresholds == ()
    expected = {row.record: pytest.approx(row.values.tolist(), rel=1e-6) for row in rows}
    assert call(["predict", str(path), str(mixed), "--format", "csv"]) == 1
    written = [row for row in csv.DictReader(capsys.readouterr().out.splitlines()) if not row["refused"]]
    assert {row["record"]: [float(row[f"{name} value"]) for name in CLASSES] for row in written} == expected
    assert call(["predict", str(path), str(mixed)]) == 1
    table = capsys.readouterr().out
    assert f"{CLASSES[0]} {rows[0].values[0]:.4g}, {CLASSES[1]} " in table
    assert "the mean of their values" in table
    assert call(["predict", str(path), rows[0].record]) == 0
    assert capsys.readouterr().out.splitlines()[3].split() == [CLASSES[0], f"{rows[0].values[0]:.4g}"]
    with pytest.raises(KdkitError, match="numbers of a regression"):
        Predictor(path, combine="max")


def raw(metadata):
    metadata["preparation"]["scaling"] = "raw"
    metadata["preparation"]["steps"] = [step for step in metadata["preparation"]["steps"] if step["step"] != "zscore"]


def test_a_network_of_signals_in_mv_needs_the_unit_of_an_array(tmp_path, model, predictor):
    in_mv = Predictor(changed(model, tmp_path / "changed.onnx", raw))
    signal = simulated(2, length=1000)[[LEADS.index(lead) for lead in EIGHT]]
    options = {"rate": 500, "leads": EIGHT}
    with pytest.raises(RecipeError, match=r"give the unit .* \(--unit mV\)"):
        in_mv.predict_array(signal, **options)
    expected = in_mv.predict_array(signal, unit="mV", **options).probabilities
    assert np.allclose(in_mv.predict_array(signal * 1e-3, unit="V", **options).probabilities, expected, atol=1e-5)
    assert not np.allclose(in_mv.predict_array(signal, unit="V", **options).probabilities, expected, atol=1e-2)
    with pytest.raises(DataError, match="standard deviations"):
        in_mv.predict_array(signal, unit="NU", **options)
    off = np.where(np.array(EIGHT)[:, None] == "V2", 3.3, signal)  # of which the filter leaves a rounding error
    assert in_mv.predict_array(off, unit="mV", **options).notes == ("flat: V2", "age and sex unknown")
    assert in_mv.predict_array(signal, unit="mV", age=50, **options).notes == ("sex unknown",)
    assert in_mv.predict_array(signal, unit="mV", age=50, sex="male", **options).notes == ()
    lost = np.where((np.array(EIGHT)[:, None] == "V2") & (np.arange(signal.shape[1]) < 250), np.nan, signal)
    (note, _) = in_mv.predict_array(lost, unit="mV", **options).notes
    assert note == f"share of invalid samples, which were interpolated: V2 {250 / signal.shape[1]:.2g}"
    lost[EIGHT.index("V2")] = np.nan  # a lead without a valid sample is 0
    assert in_mv.predict_array(lost, unit="mV", **options).notes == ("flat: V2", "age and sex unknown")
    with pytest.raises(DataError, match="all leads that the network takes are flat"):
        in_mv.predict_array(0 * signal + 3.3, unit="mV", **options)
    assert "standard deviations" in predictor.predict_array(signal, unit="NU", **options).notes[0]
    with pytest.raises(DataError, match="standard deviations"):  # I and II do not follow from others any more
        predictor.predict_array(signal, rate=500, leads=("III", "aVF", *EIGHT[2:]), unit="NU")
    np.save(tmp_path / "scaled.npy", signal)
    [source] = open_file(tmp_path / "scaled.npy", ArrayFormat(rate=500, unit="NU", leads=("III", "aVF", *EIGHT[2:])))
    with pytest.raises(DataError, match="standard deviations"):
        predictor.predict(source.read())


def test_a_record_that_is_named_twice_or_has_segments_is_one_row(tmp_path, folder, model, predictor):
    for name in ("ecg0", "ecg3"):
        for suffix in (".hea", ".dat"):
            shutil.copy(folder / "data" / "day0" / f"{name}{suffix}", tmp_path)
    (tmp_path / "both.hea").write_text("both/2 8 400 2400\necg0 1200\necg3 1200\n")
    (row,) = predictor.predict_all([tmp_path, tmp_path / "both.hea", tmp_path / "both"])
    assert row.reason is None
    assert (row.record, row.seconds) == (str(tmp_path / "both"), 6.0)
    # A segment is a record if it is named itself.
    assert predictor.predict(tmp_path / "ecg0.dat").seconds == 3.0


def test_options_of_a_predictor_are_checked(model, tmp_path):
    with pytest.raises(KdkitError, match="combine must be 'mean' or 'max' or 'centre'; got 'meen'"):
        Predictor(model, combine="meen")
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "other.onnx")
    with pytest.raises(DataError, match="no metadata of kdkit"):
        Predictor(tmp_path / "other.onnx")
    (tmp_path / "damaged.onnx").write_bytes(model.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be opened"):
        Predictor(tmp_path / "damaged.onnx")


def test_the_command_needs_no_torch_also_in_worker_processes(folder, model, predictor, tmp_path):
    """The rows are in the order of the records, with the numbers of a single process that has torch."""
    out = tmp_path / "rows.jsonl"
    program = f"""
import sys
from kdkit.cli.main import call
assert call(["predict", {str(model)!r}, {str(folder / "data" / "day1")!r}, "--out", {str(out)!r}, "--jobs", "2"]) == 0
assert "torch" not in sys.modules
"""
    without_torch(program, tmp_path)
    rows = list(map(json.loads, out.read_text().splitlines()))
    assert rows == [row.as_dict() for row in predictor.predict_all([folder / "data" / "day1"], processes=1)]


def test_the_script_without_kdkit_and_torch_computes_the_same(model, tmp_path):
    models = [str(model), str(changed(model, tmp_path / "changed.onnx", multiclass))]
    signal = simulated(4, length=1500)
    np.save(tmp_path / "ecg.npy", signal)
    example = ROOT / "examples" / "predict_without_torch.py"
    assert len(example.read_text().splitlines()) <= 60
    leads = ("I", "II", *LEADS[6:])
    np.save(tmp_path / "ecg.npy", signal[[LEADS.index(lead) for lead in leads]])
    program = f"""
import runpy, sys
sys.modules["kdkit"] = None
for model in {models}:
    sys.argv = ["x", model, {str(tmp_path / "ecg.npy")!r}, "500", {",".join(leads)!r}]
    runpy.run_path({str(example)!r})"""
    rows = [line.split("\t") for line in without_torch(program, tmp_path).splitlines()]
    assert [row[0] for row in rows] == 2 * list(CLASSES)
    expected = [Predictor(path, combine="centre").predict_array(signal, rate=500, leads=LEADS) for path in models]
    assert np.allclose(
        [float(row[1]) for row in rows], [*expected[0].probabilities, *expected[1].probabilities], atol=1e-5
    )
    assert [row[2] == "yes" for row in rows] == [*expected[0].decisions, *expected[1].decisions]


def test_real_records_of_every_release_and_variant_have_a_row_or_a_reason(shared, model, capsys):
    folder = shared / "ecg"
    names = [*sorted((folder / "header_variants").iterdir()), folder / "ptb" / "S0002",
             *sorted((folder / "ludb").glob("*.hea"))[:3], *sorted((folder / "georgia").glob("*.hea"))[:3]]  # fmt: skip
    assert call(["predict", str(model), *map(str, names), "--format", "json", "--jobs", "1"]) == 1
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    headers = len([*(folder / "header_variants").rglob("*.hea")]) + 7
    named = [row for row in rows if not (row["refused"] or "").startswith("it has no header")]
    assert len({row["record"] for row in rows}) == len(rows)
    assert len(named) == headers
    for row in rows:
        if row["refused"]:
            assert "headers_only" in row["record"] or "reduced_leads" in row["record"] or row not in named
    long = next(row for row in rows if row["record"].endswith("S0002"))
    assert (long["rate"], long["seconds"]) == (1000, 115.2)
    assert len(long["windows"]) == len(long["window_probabilities"]) == 58
    of_windows = np.mean(long["window_probabilities"], axis=0)
    assert np.allclose(of_windows, [by_class["probability"] for by_class in long["classes"].values()])


@pytest.mark.slow
def test_all_real_records_have_a_row_or_a_reason(shared, model, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert call(["predict", str(model), str(shared / "ecg"), "--out", str(out)]) == 1
    rows = list(map(json.loads, out.read_text().splitlines()))
    headers = {str(path.with_suffix("")) for path in (shared / "ecg").rglob("*.hea")}
    assert headers <= {row["record"] for row in rows}
    served = {row["record"] for row in rows if row["refused"] is None}
    assert len(served) >= 800
