"""Simulate twelve-lead ECGs with a model of the heart, each finding by its textbook criterion."""

from kdkit_ecg.simulator.findings import FINDINGS
from kdkit_ecg.simulator.simulator import Simulator

__all__ = ["FINDINGS", "Simulator"]
