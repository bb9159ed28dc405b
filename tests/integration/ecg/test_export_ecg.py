"""Exports of LRH-Net: the size of its int8 file, and the example from its training to onnxruntime alone."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from kdkit import ExportOptions, Net, Recipe, Stage, Training, Truth, export_net
from kdkit.metrics import MacroAUROC
from kdkit_ecg import Leads, LRHNet, Synthetic
from tests.helpers.command_line import ROOT

# Imports nothing else, and fails if anything else imports torch or kdkit.
ALONE = """
import json, sys
sys.modules["torch"] = sys.modules["kdkit"] = sys.modules["scipy"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["kdkit"])
preparation = metadata["preparation"]
signal = numpy.load(sys.argv[2])
person = numpy.zeros((len(signal), len(preparation["person"]["features"])), dtype="float32")
(outputs,) = session.run(None, {"signal": signal, "person": person})
print(json.dumps([preparation["leads"], preparation["rate"], outputs.tolist()]))
"""


def test_lrh_net_in_int8_has_at_most_110_kb_and_takes_any_length(tmp_path):
    torch.manual_seed(0)
    net = Net("student", LRHNet(leads=12), view=Leads(12))
    torch.save(net.network.state_dict(), tmp_path / "weights.pt")
    data = Synthetic(train=16, validation=8, test=8, length=300)
    stage = Stage({net: Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1, batch_size=8))
    recipe = Recipe(data=data, schedule=[stage], metrics=(MacroAUROC(),))
    options = ExportOptions(points=100, calibration=16, finish_epochs=0, timing_seconds=0)
    (result,) = export_net(recipe, tmp_path / "weights.pt", to="onnx-int8", options=options)
    assert result.passed
    assert result.card["bytes_without_metadata"] <= 110_000
    assert result.card["network"]["parameters"] > 80_000
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    signal, person = torch.randn(3, 12, 777), torch.rand(3, 5)
    (outputs,) = session.run(None, {"signal": signal.numpy(), "person": person.numpy()})
    with torch.no_grad():
        expected = net.network.eval()(signal, person).numpy()
    assert np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.slow
def test_the_example_is_trained_exported_and_run_by_onnxruntime_alone(kdkit_here, tmp_path):
    example = ROOT / "examples" / "lrhnet_smlkd.py"
    options = ("--epochs", "1", "--records", "128", "--quiet")
    assert kdkit_here("run", example, *options, "--out", "run").code == 0
    done = kdkit_here("export", "run", "--to", "onnx", "--to", "onnx-int8", "--to", "pt2", "--points", "100")
    assert done.code == 0, done.err
    np.save(tmp_path / "signal.npy", np.random.default_rng(0).normal(size=(2, 3, 1000)).astype(np.float32))
    file = tmp_path / "run" / "export" / "student.onnx"
    code = [sys.executable, "-c", ALONE, str(file), str(tmp_path / "signal.npy")]
    leads, rate, outputs = json.loads(subprocess.run(code, capture_output=True, check=True, text=True).stdout)
    assert (leads, rate) == (["I", "II", "V2"], 100.0)
    net = Net("student", LRHNet(leads=3), weights=tmp_path / "run").network.eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(np.load(tmp_path / "signal.npy")), torch.zeros(2, 5))
    np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-4)
