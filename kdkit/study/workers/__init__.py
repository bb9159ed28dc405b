"""Workers run the jobs of a study: in this process, in child processes, or on the machines of a Ray cluster."""

from kdkit.study.workers.ray import Cluster

__all__ = ["Cluster"]
