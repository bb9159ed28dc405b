"""What can be matched beside the labels: other nets, a net's own past or average, its peers, several teachers."""

from kdkit.teachers.base import Answers, TeacherOutput, TeacherSession, ask, require_output
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.frozen import Frozen, opened
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer

__all__ = [
    "Answers",
    "Ema",
    "Frozen",
    "Past",
    "Peer",
    "TeacherOutput",
    "TeacherSession",
    "Teachers",
    "ask",
    "opened",
    "require_output",
]
