"""Examine every record in a folder, and report what is unusable and what is unusual."""

from kdkit_ecg.doctor.report import print_survey, survey_to_json
from kdkit_ecg.doctor.survey import Survey, survey

__all__ = ["Survey", "print_survey", "survey", "survey_to_json"]
