"""Predict the classes of ECG records with an exported network or a run; an ONNX file needs no torch."""

from kdkit_ecg.predict.prediction import Prediction
from kdkit_ecg.predict.predictor import Predictor

__all__ = ["Prediction", "Predictor"]
