"""Write a trained network in a format of deployment, check it against the network, and describe what it costs."""

from kdkit.export.base import Exported, Exporter, Model
from kdkit.export.source import ExportSource

__all__ = ["ExportSource", "Exported", "Exporter", "Model"]
