"""Where the cells of a study are run: in this process, in several beside it, or on the machines of a cluster."""

from kdkit.study.workers.job import CELL, Ended, Here, Work, Workers
from kdkit.study.workers.pickling import require_not_reading, require_packable
from kdkit.study.workers.processes import Processes
from kdkit.study.workers.ray import Cluster, Machines

__all__ = [
    "CELL",
    "Cluster",
    "Ended",
    "Here",
    "Machines",
    "Processes",
    "Work",
    "Workers",
    "require_not_reading",
    "require_packable",
]
