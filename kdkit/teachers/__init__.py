"""What can be matched beside the labels: other nets, a net's own past or average, its peers, several teachers."""

from kdkit.teachers.base import TeacherOutput, TeacherOutputs, TeacherSession, require_output, run_teachers
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
    "TeacherOutput",
    "TeacherOutputs",
    "TeacherSession",
    "Teachers",
    "open_teacher",
    "require_output",
    "run_teachers",
]
