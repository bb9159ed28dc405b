"""Reports and model cards of finished runs, each one file. They are written without running a recipe."""

from kdkit.report.card import write_card
from kdkit.report.page import Report, Section, write_report
from kdkit.report.runs import ReportedRun

__all__ = ["Report", "ReportedRun", "Section", "write_card", "write_report"]
