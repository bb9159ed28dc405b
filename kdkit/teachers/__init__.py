"""What can be matched beside the labels: other nets, a net's own past or average, its peers, several teachers."""

from kdkit.teachers.base import Answer, Answers, Respondent, ask, require_answer
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Panel
from kdkit.teachers.frozen import Frozen, opened
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer

__all__ = [
    "Answer",
    "Answers",
    "Ema",
    "Frozen",
    "Panel",
    "Past",
    "Peer",
    "Respondent",
    "ask",
    "opened",
    "require_answer",
]
