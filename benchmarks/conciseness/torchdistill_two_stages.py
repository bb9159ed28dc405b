"""Distil two trained teachers into a student in two stages, with torchdistill."""

from copy import deepcopy

import torch
from given import deep_teacher, student, teacher, test, train, validation
from torch.utils.data import DataLoader
from torchdistill.core.distillation import MultiStagesDistillationBox
from torchdistill.losses.mid_level import KDLoss


class Teachers(torch.nn.ModuleList):
    """Both teachers as one module."""

    def forward(self, inputs):
        """Return the outputs of each."""
        return [teacher(inputs) for teacher in self]


def criterion(alpha, weight):
    """Return the loss on soft targets of both teachers, with `alpha` of cross-entropy."""
    terms = {
        path: {"criterion": KDLoss(".", "output", path, "output", temperature=4.0, alpha=alpha), "weight": weight}
        for path in ("0", "1")
    }
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


@torch.no_grad()
def accuracy(dataset):
    """Return the share of a data set that the student classifies correctly."""
    student.eval()
    correct = sum((student(x.to(device)).argmax(1).cpu() == y).sum() for x, y in DataLoader(dataset, batch_size=64))
    return correct.item() / len(dataset)


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
common = {
    "num_epochs": 5,
    "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False, "forward_hook": {"output": ["0", "1"]}},
    "student": {"forward_proc": "forward_batch_only"},
    "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
}
# Without cross-entropy KDLoss leaves out the square of the temperature: 8 = 0.5 * 4 ** 2.
config = {
    "stage1": {**common, "criterion": criterion(alpha=0.0, weight=8.0)},
    "stage2": {**common, "criterion": criterion(alpha=0.4, weight=0.5)},
}
teachers = Teachers([teacher, deep_teacher])
box = MultiStagesDistillationBox(teachers, student, {}, config, device, None, False, 1)
loader = DataLoader(train, batch_size=64, shuffle=True)
best = 0.0
for epoch in range(box.num_epochs):
    box.pre_epoch_process(epoch=epoch)
    for inputs, labels in loader:
        box.post_forward_process(box.forward_process(inputs.to(device), labels.to(device)))
    box.post_epoch_process()
    if (value := accuracy(validation)) > best:
        best, weights = value, deepcopy(student.state_dict())
student.load_state_dict(weights)
print(f"accuracy {accuracy(test):.3f}")
