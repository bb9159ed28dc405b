"""Distil a trained teacher into a student on the user's own data, with torchdistill."""

from copy import deepcopy

import torch
from given import student, teacher, test, train, validation
from torch.utils.data import DataLoader
from torchdistill.core.distillation import DistillationBox
from torchdistill.losses.mid_level import KDLoss


@torch.no_grad()
def accuracy(dataset):
    """Return the share of a data set that the student classifies correctly."""
    student.eval()
    correct = sum((student(x.to(device)).argmax(1).cpu() == y).sum() for x, y in DataLoader(dataset, batch_size=64))
    return correct.item() / len(dataset)


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
loss = KDLoss(".", "output", ".", "output", temperature=4.0, alpha=0.5)
config = {
    "num_epochs": 10,
    "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
    "student": {"forward_proc": "forward_batch_only"},
    "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
    "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
}
box = DistillationBox(teacher, student, {}, config, device, None, False, 1)
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
