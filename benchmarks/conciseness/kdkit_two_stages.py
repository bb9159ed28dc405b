"""Distil two trained teachers into a student in two stages, with kdkit."""

from given import deep_teacher, student, teacher, test, train, validation
from torch import nn

from kdkit import Match, Net, Recipe, Stage, TorchData, Training, Truth, run
from kdkit.losses import SoftTargets

wide, deep = Net("wide", teacher, trained=True), Net("deep", deep_teacher, trained=True)
small, training = Net("student", student), Training(epochs=5)
soft = 0.5 * Match(wide, SoftTargets(temperature=4.0)) + 0.5 * Match(deep, SoftTargets(temperature=4.0))
schedule = [
    Stage({small: soft}, training, name="soft targets"),
    Stage({small: 0.4 * Truth(nn.CrossEntropyLoss()) + 0.6 * soft}, training, name="labels too"),
]
result = run(Recipe(data=TorchData(train, validation, test), schedule=schedule))
print(f"accuracy {result.metrics['student']['accuracy'].value:.3f}")
