"""Workers run the jobs of a study: in this process, in child processes, or on the machines of a Ray cluster."""

from kdkit.study.workers.in_process import InProcess
from kdkit.study.workers.job import TRIAL_FILE, Job, JobResult, Workers
from kdkit.study.workers.pickling import require_guarded_script, require_picklable
from kdkit.study.workers.processes import Processes
from kdkit.study.workers.ray import Cluster, RayWorkers

__all__ = [
    "TRIAL_FILE",
    "Cluster",
    "InProcess",
    "Job",
    "JobResult",
    "Processes",
    "RayWorkers",
    "Workers",
    "require_guarded_script",
    "require_picklable",
]
