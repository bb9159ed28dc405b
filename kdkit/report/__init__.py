"""Reports of finished runs: one HTML file that needs nothing else. It is written without running a recipe."""

from kdkit.report.page import Report, Section, write_report
from kdkit.report.runs import ReportedRun

__all__ = ["Report", "ReportedRun", "Section", "write_report"]
