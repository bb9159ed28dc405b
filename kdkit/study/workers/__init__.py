"""Where the cells of a study are run: in this process, in several beside it, or on the machines of a cluster."""

from kdkit.study.workers.job import CELL, InProcess, Job, JobResult, Workers
from kdkit.study.workers.pickling import require_not_reading, require_packable
from kdkit.study.workers.processes import Processes
from kdkit.study.workers.ray import Cluster, RayWorkers

__all__ = [
    "CELL",
    "Cluster",
    "InProcess",
    "Job",
    "JobResult",
    "Processes",
    "RayWorkers",
    "Workers",
    "require_not_reading",
    "require_packable",
]
