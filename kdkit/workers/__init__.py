"""Where the cells of a study are run: in this process, in several beside it, or on the machines of a cluster."""

from kdkit.workers.cluster import Cluster, Machines
from kdkit.workers.processes import Processes
from kdkit.workers.spreading import Here, Workers, spread
from kdkit.workers.travel import require_not_reading, require_packable
from kdkit.workers.work import CELL, Ended, Work

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
    "spread",
]
