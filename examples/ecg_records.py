"""Your own ECG records, with any leads and rate: LRH-Net learns from a larger network and from the labels.

    kdkit run examples/ecg_records.py
    kdkit run examples/ecg_records.py --data FOLDER --rate 250 --seconds 10

FOLDER contains records (WFDB, DICOM, GE MUSE XML, HL7 aECG or EDF), and labels.csv with the columns record, label and
patient. Without --data, the records are simulated. docs/ecg.md describes other files, such as NumPy arrays and HDF5,
and other tables.
"""

from pathlib import Path

from torch.nn import BCEWithLogitsLoss
from torch.optim import Adam

from kdkit import Net, Optimizer, Parallel, Recipe, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.metrics import BootstrapInterval, MacroAUROC, MacroF1
from kdkit_ecg import LRHNet, Records, SEResNet, Synthetic


def recipe(
    data: Path | None = None,
    labels: str = "labels.csv",
    rate: float = 100,
    seconds: float = 10,
    fold: int = 0,
    epochs: int = 12,
    width: int = 16,
    samples: int = 640,
) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    data: folder of the records; simulated by default.
    labels: the table of labels, in this folder or elsewhere.
    rate: Hz to which all records are resampled.
    seconds: length of the part of a record that a network sees.
    fold: the fold to test on, 0 to 4; no patient is in two folds.
    epochs: number of epochs of each network.
    width: width of the larger network.
    samples: number of simulated training records.
    """
    length = round(seconds * rate)
    simulated = Synthetic(train=samples, validation=samples // 5, test=samples // 5, rate=rate, length=length)
    records = Records(data, labels, rate=rate, length=length, fold=fold) if data else simulated
    return Recipe(
        data=records,
        metrics=(BootstrapInterval(MacroAUROC()), MacroF1()),
        schedule=Parallel(
            # The records determine the numbers of leads and classes.
            Net("teacher", SEResNet.for_data(records, width=width)),
            Net("student", LRHNet.for_data(records)),
            truth=Truth(BCEWithLogitsLoss()),
            kd_loss=SoftTargets(temperature=2.0),
            label_weight=0.3,
            training=Training(epochs=epochs, optimizer=Optimizer(Adam, lr=3e-3)),
        ),
    )
