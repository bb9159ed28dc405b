"""Export a trained network to a deployment format, check the file against the network, and measure its cost."""

from kdkit.export.base import Exported, Exporter, Model
from kdkit.export.source import ExportSource

__all__ = ["ExportSource", "Exported", "Exporter", "Model"]
