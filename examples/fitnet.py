"""FitNet (Romero et al. 2015, arXiv:1412.6550): a hidden layer of the student learns to predict one of the teacher.

The teacher sees all twelve leads of an ECG, the student three. A projector, trained with the student, maps the features
of the student's second block to the shape of the teacher's second group. The paper trains in two phases, first the hint
and then the knowledge distillation; here the weights of the two fade over. The records are simulated.

    kdkit run examples/fitnet.py
    kdkit run examples/fitnet.py --leads 2 --records 2000 --epochs 20
"""

from torch.nn import BCEWithLogitsLoss
from torch.optim import Adam

from kdkit import CosineRamp, LinearRamp, Match, Net, Optimizer, Recipe, Stage, Tap, Training, Truth
from kdkit.losses import Hint, PerLabelSoftTargets
from kdkit.metrics import MacroAUPRC, MacroAUROC
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic


def recipe(leads: int = 3, records: int = 640, epochs: int = 10, hint: float = 1.0) -> Recipe:
    """Return the experiment.

    leads: number of leads the student sees.
    records: number of training records.
    epochs: number of epochs of each stage.
    hint: initial weight of the hint.
    """
    teacher = Net("teacher", SEResNet(leads=12, width=16), view=Leads(12))
    student = Net("student", LRHNet(leads=leads), view=Leads(leads))
    truth = Truth(BCEWithLogitsLoss())
    middle = Match(teacher, Hint(), student=Tap(student.module.block2), target=Tap(teacher.module.group2))
    knowledge = 0.3 * truth + 0.7 * Match(teacher, PerLabelSoftTargets(temperature=2.0))
    # Ramps are factors that change with the progress of the stage, from 0 to 1.
    objective = CosineRamp(start=hint, end=0.0, until=0.5) * middle + LinearRamp(start=0.1, until=0.3) * knowledge
    training = Training(epochs=epochs, batch_size=32, optimizer=Optimizer(Adam, lr=3e-3))
    return Recipe(
        data=Synthetic(train=records, validation=records // 4, test=records // 2, length=500),
        metrics=(MacroAUROC(), MacroAUPRC()),
        schedule=[Stage({teacher: truth}, training), Stage({student: objective}, training)],
    )
