"""One command trains LRH-Net on PTB-XL in its own layout, and prints its macro AUROC on fold 10 with an interval."""

import csv
import json

from kdkit_ecg.records.filters import resample
from kdkit_ecg.records.header import read_header
from tests.helpers.command_line import ROOT
from tests.helpers.ptbxl_files import write_database, write_signal, write_statements

STATEMENTS = (
    "{'NORM': 100.0, 'SR': 0.0}",
    "{'IMI': 80.0, 'ABQRS': 0.0, 'SR': 0.0}",
    "{'CRBBB': 100.0, 'SBRAD': 0.0}",
    "{'NDT': 100.0, 'LVH': 100.0, 'AFIB': 0.0}",
)


def write_release(folder, shared, count):
    """Write real signals at 100 Hz with statements in turn, and four patients in each of the ten folds."""
    with (shared / "ecg" / "records.csv").open() as file:
        ages = {row["record"]: (row["age"], row["sex"]) for row in csv.DictReader(file)}
    rows = []
    for number, path in enumerate(sorted((shared / "ecg" / "ptb-xl").glob("*.hea"))[:count], start=1):
        write_signal(folder, number, resample(read_header(path).read().signal.astype(float), 500, 100), 100)
        age, sex = ages[path.stem]
        rows.append(
            {
                "ecg_id": number,
                "patient_id": f"{number}.0",
                "age": age,
                "sex": int(sex == "Female"),
                "scp_codes": STATEMENTS[number % 4],
                "strat_fold": 1 + (number - 1) // 4,
            }
        )
    write_statements(folder)
    write_database(folder, rows)


def test_one_command_gives_the_macro_auroc_on_fold_10_with_an_interval(shared, kdkit_here, tmp_path):
    write_release(tmp_path / "ptb-xl", shared, 40)
    example = ROOT / "examples" / "ptbxl.py"
    options = ["--data", "ptb-xl", "--epochs", 1, "--no-teacher", "--device", "cpu"]
    result = kdkit_here("run", example, *options, "--out", "run")
    assert result.code == 0, result.err
    assert "40 of 40 records read" in result.out
    score = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["student"]["macro_auroc"]
    low, high = score["interval"]
    assert 0 <= low <= score["value"] <= high <= 1
    assert set(score["by_class"]) == {"NORM", "MI", "CD", "STTC", "HYP"}
