"""Compare the losses of the examples in two checkouts, bit for bit: `python tools/compare_checkouts.py OLD NEW`.

Every example runs in both checkouts with seed 0 on one thread, with its own cache. The terms of every epoch and the
weights of every stage must be equal. A refactoring must not move them; a change that does says so in CHANGELOG.md.

    git worktree add ../old main
    python tools/compare_checkouts.py ../old . --rename custom_loss=own_loss all_losses=zoo
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Small enough for a few minutes, large enough to pass through every stage, a resume of the cache, and a projector.
RUNS = {
    "hinton": ["hinton"],
    "fitnet": ["fitnet", "--epochs", "2"],
    "custom_loss": ["custom_loss"],
    "timm_digits": ["timm_digits", "--epochs", "1"],
    "lrhnet_smlkd": ["lrhnet_smlkd", "--epochs", "2", "--width", "8", "--records", "128"],
    "lrhnet_pmlkd": ["lrhnet_pmlkd", "--epochs", "2", "--width", "8", "--records", "128"],
    **{f"all_losses-{loss}": ["all_losses", "--loss", loss, "--epochs", "2"] for loss in ("crd", "review_kd", "pskd")},
    **{f"all_losses-{name}": ["all_losses", "--loss", name, "--epochs", "2"] for name in ("simkd", "mean_teacher")},
    "all_losses-ecg": ["all_losses", "--loss", "per_label_dkd", "--data", "ecg", "--epochs", "2", "--samples", "64"],
}


def main() -> None:
    """Run every example in both checkouts and print the differences; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rename", nargs="*", default=[], metavar="NEW=OLD", help="Examples with another name in OLD.")
    options = parser.parse_args()
    old_names = dict(pair.split("=") for pair in options.rename)
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (example, *args) in RUNS.items():
            old = results(options.old, old_names.get(example, example), args, Path(folder) / "old" / name)
            new = results(options.new, example, args, Path(folder) / "new" / name)
            equal = old == new
            different += not equal
            print(f"{name:28} {len(new)} values and weight files {'equal' if equal else 'DIFFERENT'}", flush=True)
    sys.exit(1 if different else 0)


def results(checkout: Path, example: str, args: list[str], folder: Path) -> list[str]:
    """Run an example of a checkout, and return its losses and the digests of its weights."""
    root = checkout.resolve()
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",  # sums depend on the number of threads
        "KDKIT_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "kdkit", "run", str(root / "examples" / f"{example}.py"), *args]
    subprocess.run(
        [*command, "--out", "run", "--device", "cpu", "--quiet"],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines: list[str] = []
    for history in sorted(folder.glob("run/*/history.jsonl")):
        for epoch in map(json.loads, history.read_text().splitlines()):
            # Without the names of the terms: a loss may have been renamed.
            lines += [f"{history.parent.name} {epoch['epoch']} {value!r}" for value in epoch["terms"].values()]
    for weights in sorted(folder.glob("run/*/weights*.safetensors")):
        lines.append(f"{weights.parent.name} {weights.name} {hashlib.sha256(weights.read_bytes()).hexdigest()}")
    return lines


if __name__ == "__main__":
    main()
