"""Predict the classes of an ECG with an exported network, using onnxruntime, numpy and scipy, but no kdkit or torch.

    python predict_without_torch.py student.onnx ecg.npy 500 I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6

ecg.npy is an array (leads, time) in mV, followed by its rate in Hz and its leads. The metadata of the file says how
a signal becomes its input; docs/export.md defines each step. For research only: not a medical device.
"""

import json
import sys

import numpy as np
import onnxruntime
from scipy.signal import butter, resample_poly, sosfiltfilt

path, signal_file, leads, rate = sys.argv[1], sys.argv[2], sys.argv[4], float(sys.argv[3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["kdkit"])
recorded = dict(zip(leads.split(","), np.load(signal_file).astype(np.float64), strict=True))

# Einthoven and Goldberger: missing limb leads follow from I and II.
if "I" in recorded and "II" in recorded:
    i, ii = recorded["I"], recorded["II"]
    recorded = {"III": ii - i, "aVR": -(i + ii) / 2, "aVL": i - ii / 2, "aVF": ii - i / 2} | recorded

signal = np.zeros((0, 0))  # (leads, time)
for step in metadata["preparation"]["steps"]:
    match step["step"]:
        case "leads":
            signal = np.stack([recorded[name] for name in step["names"]])
        case "interpolate_invalid":
            assert np.isfinite(signal).all(), "this script expects samples that are numbers"
        case "bandpass":
            sections = butter(step["order"], (step["low"], step["high"]), "bandpass", fs=rate, output="sos")
            signal = sosfiltfilt(sections, signal, padlen=min(step["padding_samples"], signal.shape[1] - 1))
        case "resample" if step["method"] == "polyphase":
            up, down = round(step["rate"] * 1000), round(rate * 1000)  # resample_poly reduces the ratio
            first, slope = signal[:, :1], np.diff(signal[:, [0, -1]]) / max(1, signal.shape[1] - 1)
            rest = signal - (first + slope * np.arange(signal.shape[1]))
            rest = resample_poly(rest, up, down, axis=1, window=(step["window"], step["beta"]))
            signal = rest + first + slope * (np.arange(rest.shape[1]) * down / up)
        case "zscore":
            deviation = signal.std(axis=1, keepdims=True)
            scaled = (signal - signal.mean(axis=1, keepdims=True)) / np.maximum(deviation, step["flat_below"])
            signal = np.where(deviation < step["flat_below"], 0, scaled)
        case "window":  # the middle of the signal, or zeros on both sides of it
            spare = signal.shape[1] - step["length"]
            signal = np.pad(signal, ((0, 0), (max(-spare, 0) // 2, max(-spare, 0) - max(-spare, 0) // 2)))
            signal = signal[:, max(spare, 0) // 2 :][:, : step["length"]]
        case other:
            sys.exit(f"the step {other!r} is unknown here")

inputs = {"signal": signal[None].astype(np.float32), "person": np.zeros((1, 5), np.float32)}  # age and sex unknown
thresholds = (metadata["thresholds"] or {}).get("probabilities")  # None if exactly one class is true
(logits,) = session.run(None, {entry["name"]: inputs[entry["name"]] for entry in metadata["inputs"]})
outputs = logits[0].astype(np.float64)
probabilities = 1 / (1 + np.exp(-outputs)) if thresholds else np.exp(outputs) / np.exp(outputs).sum()
for number, (name, probability) in enumerate(zip(metadata["classes"], probabilities, strict=True)):
    lowest = probabilities.max() if thresholds is None else thresholds[number]
    print(f"{name}\t{probability:.6f}\t{'yes' if lowest is not None and probability >= lowest else 'no'}")
