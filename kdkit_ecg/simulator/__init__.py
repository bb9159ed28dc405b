"""Twelve-lead ECGs made by a model of the heart, each finding by its textbook criterion."""

from kdkit_ecg.simulator.findings import CONDITIONS
from kdkit_ecg.simulator.patients import Patient
from kdkit_ecg.simulator.simulator import Record, Simulator

__all__ = ["CONDITIONS", "Patient", "Record", "Simulator"]
