"""What can be matched beside the labels: other nets, a net's own past or average, its peers, several teachers."""

from kdkit.sources.average import Ema
from kdkit.sources.frozen import Frozen
from kdkit.sources.opening import asked_for, opened
from kdkit.sources.panel import Panel
from kdkit.sources.past import Past
from kdkit.sources.peer import Peer
from kdkit.sources.respondent import Answer, Answers, Respondent, ask, require_answer

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
    "asked_for",
    "opened",
    "require_answer",
]
