"""Twelve-lead ECGs made by a model of the heart, each finding by its textbook criterion."""

from kdkit_ecg.synthetic.conditions import CONDITIONS
from kdkit_ecg.synthetic.patients import Patient
from kdkit_ecg.synthetic.simulator import Record, Simulator

__all__ = ["CONDITIONS", "Patient", "Record", "Simulator"]
