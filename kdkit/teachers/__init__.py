"""Teachers: frozen networks, past outputs or the moving average of a network in training, peers, and ensembles."""

from kdkit.teachers.base import Teacher, TeacherOutput, TeacherOutputs, TeacherSession, require_output
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.frozen import Frozen, open_teacher
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer

__all__ = [
    "Ema",
    "Frozen",
    "Past",
    "Peer",
    "Teacher",
    "TeacherOutput",
    "TeacherOutputs",
    "TeacherSession",
    "Teachers",
    "open_teacher",
    "require_output",
]
