"""The scripts of the page in docs/demo compute what Python computes, and its build refuses what it cannot use.

node runs them; these tests are skipped without it. integration/in_browser/test_demo_in_browser.py opens the page.
"""

import json
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy.signal import butter, sosfiltfilt

from kdkit.errors import DataError
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.description import describe_preparation
from kdkit_ecg.records.filters import rate_ratio, resample, resample_linear
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import SHORTEST, Preparation
from tests.helpers.demo import calls, needs_node, record_of, values
from tests.helpers.wfdb_files import write_matrix
from tools import demo

CHALLENGE = {"rate": 257.0, "band": (0.5, 47.0), "resampling": "polyphase", "scaling": "zscore"}
PAPER = {"rate": 257.0, "band": None, "resampling": "linear", "scaling": "raw"}


def described(options, length=4096, leads=LEADS):
    return describe_preparation(Preparation(leads=leads, **options), length=length, window="centre")


def window(signal, length):
    """Return the window of a data set, (leads, length)."""
    split = SignalSplit(
        signals=[signal],
        person=torch.zeros(1, 5),
        labels=torch.zeros(1, 1),
        ids=torch.zeros(1, dtype=torch.int64),
        length=length,
        rate=1.0,
        window="centre",
    )
    return split.batch([0], 0).inputs[0][0].numpy()


def assert_prepared_alike(paths, options, length=4096, leads=LEADS):
    """Check that the page prepares records as Python does, and refuses those that Python refuses."""
    description = described(options, length, leads)
    results = calls(*({"name": "prepare", "preparation": description, **record_of(path)} for path in paths))
    preparation = Preparation(leads=leads, **options)
    for path, result in zip(paths, results, strict=True):
        record = read_header(path).read()
        try:
            prepared = preparation.transform(record)
        except DataError:
            assert "refused" in result, path
            continue
        if prepared.shape[1] < SHORTEST * length:
            assert "the network needs at least" in result["refused"], path
            continue
        expected = window(prepared, length)
        result = result["value"]
        actual = np.array(result["signal"], dtype=np.float32).reshape(len(leads), length)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * max(1, abs(expected).max()), err_msg=path.name)
        np.testing.assert_allclose(result["person"], record.person, rtol=1e-6)


@needs_node
def test_an_age_that_is_an_output_of_the_network_is_no_input(tmp_path):
    path = write_matrix(tmp_path, "A1", np.random.default_rng(0).integers(-800, 800, (12, 600)))
    preparation = Preparation(**CHALLENGE)
    description = describe_preparation(preparation, length=300, window="centre", hidden=["age"])
    (result,) = values({"name": "prepare", "preparation": description, **record_of(path)})
    assert result["person"] == [0, 0, 0, 1, 1]


@needs_node
def test_the_band_pass_is_that_of_scipy():
    random = np.random.default_rng(0)
    cases = [
        (3, 0.5, 47.0, 500.0, 5000),
        (3, 0.5, 47.0, 1000.0, 3000),
        (3, 0.5, 47.0, 100.3, 700),
        (3, 0.05, 20.0, 257.0, 2000),
        (3, 8.0, 12.0, 360.1, 900),  # narrow, so that no pole is real
        (1, 0.5, 40.0, 250.0, 12),
        (2, 1.0, 30.0, 128.0, 400),
        (4, 0.5, 47.0, 500.0, 1),
        (5, 5.0, 15.0, 200.0, 21),
    ]
    requests, expected = [], []
    for order, low, high, rate, time in cases:
        signal = random.normal(size=time) + 2
        padding = 6 * order + 3
        sections = butter(order, [low, high], "bandpass", fs=rate, output="sos")
        expected.append(sosfiltfilt(sections, signal, padlen=min(padding, time - 1)))
        options = {"order": order, "low": low, "high": high, "rate": rate, "padding": padding}
        requests.append({"name": "bandpass", **options, "signal": signal.tolist()})
    for actual, filtered, case in zip(values(*requests), expected, cases, strict=True):
        np.testing.assert_allclose(actual, filtered, rtol=0, atol=1e-8, err_msg=str(case))


@needs_node
@pytest.mark.parametrize(("name", "change_rate"), [("polyphase", resample), ("linear", resample_linear)])
def test_resampling_is_that_of_python(name, change_rate):
    random = np.random.default_rng(1)
    cases = [
        (500, 257, 999),
        (1000, 257, 3001),
        (360.1, 257, 500),
        (100, 257, 60),
        (257, 500, 41),
        (500, 100, 5),
        (2, 1, 2),
    ]
    signals = [random.normal(size=(1, time)) for *_, time in cases]
    requests = [
        {"name": name, "rate": rate, "to": to, "signal": signal[0].tolist()}
        for (rate, to, _), signal in zip(cases, signals, strict=True)
    ]
    for actual, signal, (rate, to, _) in zip(values(*requests), signals, cases, strict=True):
        expected = change_rate(signal, rate, to)[0]
        assert len(actual) == len(expected)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11, err_msg=f"{rate} to {to}")


@needs_node
def test_ratios_of_rates_are_exact_for_decimal_numbers():
    rates = [(500.0, 257.0), (360.1, 257.0), (1e-05, 0.0002), (257.00001, 257.0), (977.5171065, 257.0), (3.0, 1e21)]
    results = values(*({"name": "ratio", "rate": rate, "to": to} for rate, to in rates[:-1]))
    assert [Fraction(*result) for result in results] == [rate_ratio(rate, to) for rate, to in rates[:-1]]
    random = np.random.default_rng(2)
    pairs = [(round(float(a), 9), round(float(b), 9)) for a, b in random.uniform(1, 2000, (200, 2))]
    results = values(*({"name": "ratio", "rate": rate, "to": to, "most": 1000} for rate, to in pairs))
    expected = [(Fraction(str(to)) / Fraction(str(rate))).limit_denominator(1000) for rate, to in pairs]
    assert [Fraction(*result) for result in results] == expected


@needs_node
def test_invalid_samples_are_interpolated():
    signals = [[None, 1, None, None, 4, None], [None, None], [2, 3], [None, 5]]
    results = values(*({"name": "interpolate", "signal": signal, "otherwise": 7} for signal in signals))
    assert results == [[1, 1, 2, 3, 4, 4], [7, 7], [2, 3], [5, 5]]


@needs_node
@pytest.mark.parametrize("options", [CHALLENGE, PAPER], ids=["challenge", "paper"])
def test_records_are_prepared_as_in_python(tmp_path, options):
    random = np.random.default_rng(3)

    def write(name, *, time=5000, leads=LEADS, **more):
        steps = np.cumsum(random.integers(-20, 21, (len(leads), time)), axis=1) % 3000
        steps[0, 7:30] = steps[-1, :3] = -(1 << 15)  # invalid
        return write_matrix(tmp_path, name, steps, leads=leads, **more)

    paths = [
        write("plain"),
        write("long", time=12_345),
        write("short", time=600),
        write("too_short", time=40),
        write("single", time=1),
        write("names", leads=("Lead I", "AVR", *(f"v{number}" for number in range(1, 7))), gain="4880(17)/uV"),
        write("rate", record_line="rate 12 360.1 5000"),
        write("slow", record_line="slow 12 100/50 5000 10:00:00", comments="#Age : 071Y\n#Sex: F\n"),
        write("unknown", comments="#Age: 300\n#Sex: Unknown\n"),
    ]
    assert_prepared_alike(paths, options)
    assert_prepared_alike(paths, options, length=1000, leads=("V2", "aVF", "I"))


@needs_node
def test_real_records_are_prepared_as_in_python(shared):
    names = ["georgia/E07500", "ptb/S0001", "ludb/LU0002", "cpsc_2018/A0001", "ptb-xl/HR00001"]
    paths = [shared / "ecg" / f"{name}.hea" for name in names]
    paths = [path if path.is_file() else sorted(path.parent.glob("*.hea"))[0] for path in paths]
    assert_prepared_alike(paths, CHALLENGE)


@needs_node
def test_texts_of_files_have_no_control_characters_in_messages():
    (result,) = values({"name": "shown", "text": "a\x1b[31m\u202eb" + "c" * 200})
    assert result == "a\ufffd[31m\ufffdb" + "c" * 92 + "…"


@needs_node
def test_a_preparation_that_the_page_does_not_know_is_refused():
    changes = [
        (lambda steps: steps.insert(1, {"step": "notch", "at": 50}), "does not know the step “notch”"),
        (lambda steps: steps[2].update(filter="chebyshev"), "filter = chebyshev of the step “bandpass”"),
        (lambda steps: steps[2].update(ripple=3), "ripple = 3"),
        (lambda steps: steps[-1].update(position="end"), "position = end"),
        (lambda steps: steps.pop(), "ends with a window"),
        (lambda steps: steps.pop(0), "begins with leads"),
    ]
    preparations = [described(CHALLENGE) for _ in changes]
    for (change, _), preparation in zip(changes, preparations, strict=True):
        change(preparation["steps"])
    results = calls(*({"name": "checkPreparation", "preparation": preparation} for preparation in preparations))
    for (_, reason), result in zip(changes, results, strict=True):
        assert reason in result["refused"]


@needs_node
def test_a_rate_that_does_not_fit_the_band_is_refused(tmp_path):
    path = write_matrix(tmp_path, "A1", np.ones((12, 300), dtype=int), record_line="A1 12 90 300")
    (result,) = calls({"name": "prepare", "preparation": described(CHALLENGE), **record_of(path)})
    assert "needs more than 94 Hz" in result["refused"]


@needs_node
def test_flat_leads_are_named_and_a_record_of_nothing_else_is_refused(tmp_path):
    steps = np.random.default_rng(5).integers(-99, 99, (12, 5000))
    steps[3] = 330
    some, none = write_matrix(tmp_path, "some", steps), write_matrix(tmp_path, "none", steps * 0 + 330)
    for options in (CHALLENGE, PAPER):  # the latter keeps the offset of a flat lead
        requests = ({"name": "prepare", "preparation": described(options), **record_of(path)} for path in (some, none))
        named, refused = calls(*requests)
        assert named["value"]["flat"] == ["aVR"]
        assert "flat" in refused["refused"]


@needs_node
def test_decisions_are_those_of_the_thresholds():
    metadata = {
        "classes": ["A", "B", "C"],
        "output": {"activation": "sigmoid"},
        "thresholds": {"logits": [0.5, None, -1]},
    }
    (rows,) = values({"name": "decide", "logits": [0.5, 9, -2], "metadata": metadata})
    assert [row["predicted"] for row in rows] == [True, False, False]
    np.testing.assert_allclose([row["probability"] for row in rows], 1 / (1 + np.exp([-0.5, -9, 2])))
    assert rows[1]["threshold"] is None
    metadata |= {"output": {"activation": "softmax"}, "thresholds": None}
    (rows,) = values({"name": "decide", "logits": [1000, 999, 0], "metadata": metadata})
    np.testing.assert_allclose([row["probability"] for row in rows], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0])
    assert [row["predicted"] for row in rows] == [True, False, False]


METADATA = {
    "format": 1,
    "task": "multilabel",
    "classes": ["AF"],
    "output": {"activation": "sigmoid"},
    "thresholds": {"probabilities": [0.5], "logits": [0.0]},
    "inputs": [{"name": "signal", "shape": ["batch", 12, 4096], "dtype": "float32"}],
    "preparation": described(PAPER),
}


def write_model(path, metadata):
    """Write an ONNX file of one operator with metadata."""
    signal, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 12]) for name in ("signal", "outputs"))
    graph = helper.make_graph([helper.make_node("Relu", ["signal"], ["outputs"])], "graph", [signal], [output])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, {"other": "é" * 300, **metadata})
    onnx.save(model, path)
    return path


@needs_node
def test_metadata_are_read_from_the_file_of_the_network(tmp_path):
    path = write_model(tmp_path / "model.onnx", {"kdkit": json.dumps({"format": 1, "classes": ["é"]})})
    content = path.read_bytes()
    requests = [{"name": "metadata", "content": list(content[:size])} for size in range(len(content))]
    whole, *parts = calls({"name": "metadata", "path": str(path)}, *requests)
    assert whole["value"] == {"format": 1, "classes": ["é"]}
    assert all("ONNX file" in part["refused"] or "no metadata of kdkit" in part["refused"] for part in parts)


def test_the_build_refuses_what_it_cannot_use_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("text")
    archive = tmp_path / "onnxruntime-web.tgz"
    archive.write_bytes(b"another archive")
    plain = write_model(tmp_path / "plain.onnx", {})
    ecg = write_model(tmp_path / "ecg.onnx", {"kdkit": json.dumps(METADATA)})
    image = write_model(tmp_path / "image.onnx", {"kdkit": json.dumps({**METADATA, "preparation": {}})})
    numbers = {**METADATA, "task": "regression", "output": {"activation": None}}
    age = write_model(tmp_path / "age.onnx", {"kdkit": json.dumps(numbers)})
    for model, out, reason in [
        (tmp_path / "missing.onnx", "page", "missing.onnx"),
        (archive, "page", "is not an .onnx file"),
        (plain, "page", "has no metadata of kdkit"),
        (image, "page", "expected a network whose inputs are described as ECGs"),
        (age, "page", "predicts numbers"),
        (ecg, "other", "has files of something else"),
        (ecg, "page", f"is not onnxruntime-web {demo.VERSION}"),
    ]:
        assert demo.main(["--model", str(model), "--out", str(tmp_path / out), "--runtime", str(archive)]) == 2
        assert reason in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.main(["--model", str(ecg), "--out", str(tmp_path / "page")]) == 2
    assert "npm is not installed" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]
    assert not [folder for folder in tmp_path.iterdir() if folder.name.startswith(".")]
