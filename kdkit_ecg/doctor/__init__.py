"""Examine every record in a folder: what is there, what is bad, and what is odd."""

from kdkit_ecg.doctor.report import as_json, show
from kdkit_ecg.doctor.survey import Survey, survey

__all__ = ["Survey", "as_json", "show", "survey"]
