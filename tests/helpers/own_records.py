"""Records of eight leads as a recorder of a user writes them, with three classes, and a recipe for them."""

import csv

import torch
from safetensors.torch import save_file
from torch.nn import BCEWithLogitsLoss

from kdkit import Net, Recipe, Stage, Training, Truth
from kdkit.metrics import MacroF1
from kdkit_ecg import LRHNet, Records
from kdkit_ecg.leads import LEADS
from kdkit_ecg.simulator import Simulator
from tests.helpers.wfdb_files import write_signals

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
CLASSES = ("arrhythmia", "conduction", "none of these")
ARRHYTHMIA, CONDUCTION = {"AF", "AFL", "PAC", "PVC"}, {"RBBB", "LBBB", "IAVB", "CRBBB", "LAnFB"}


def own_classes(findings):
    classes = [name for name, group in zip(CLASSES, (ARRHYTHMIA, CONDUCTION), strict=False) if group & set(findings)]
    return ";".join(classes) or CLASSES[2]


def write_signal(folder, name, signal, *, rate, leads, prefix="", comments=()):
    """Write a WFDB record in steps of 1 uV. signal: (leads, time) in mV."""
    write_signals(folder, name, signal.T, rate=rate, leads=[f"{prefix}{lead}" for lead in leads], comments=comments)


def write_own_records(folder, *, count=20, rate=400, length=800):
    """Write records of eight leads, two of each patient, and labels.csv."""
    simulator = Simulator(seed=3, rate=rate, length=length, difficulty=0.3)
    rows = [("record", "label", "patient")]
    for id in range(count):
        record = simulator.record(id)
        signal = record.signal[[LEADS.index(lead) for lead in EIGHT]]
        write_signal(folder / f"day{id % 3}", f"ecg{id}", signal, rate=rate, leads=EIGHT, prefix="Lead ")
        rows.append((f"day{id % 3}/ecg{id}", own_classes(record.patient.findings), f"patient {id // 2}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def untrained(folder):
    """Return a recipe on such records: LRH-Net on windows of 2 s at 100 Hz, which is quick to make and to export."""
    torch.manual_seed(0)
    records = Records(folder, rate=100, length=200, store=None, leads=EIGHT)
    student = Net("student", LRHNet.for_data(records))
    return Recipe(
        data=records, schedule=[Stage({student: Truth(BCEWithLogitsLoss())}, Training(epochs=1))], metrics=(MacroF1(),)
    )


def save_weights(recipe, path):
    """Save weights whose outputs differ between records: norms have the statistics of these, as after a training."""
    (student,) = recipe.stages[0].objectives
    network = student.network.train()
    with torch.no_grad():
        batch = recipe.data.train.batch(list(range(len(recipe.data.train))), 0)
        for _ in range(20):
            network(*batch.inputs)
    weights = {name: tensor.contiguous() for name, tensor in network.eval().state_dict().items()}
    weights["classifier.weight"] *= 20  # probabilities of records then differ by tenths
    save_file(weights, path)
