"""Build the page that runs an exported ECG network in a browser: `python -m tools.demo --model FILE --out FOLDER`.

It needs `pip install -e '.[onnx]'`, and npm to fetch onnxruntime-web once. Serve the folder by any server of files:

    python -m tools.demo --model runs/first/export/student.onnx --out build/demo
    python -m http.server --directory build/demo --bind 127.0.0.1 8000
"""

import argparse
import base64
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import wfdb

from kdkit import DataError, KdkitError
from kdkit_ecg import Predictor, Synthetic
from kdkit_ecg.labels import scored_classes, table
from kdkit_ecg.leads import LEADS, missing_leads

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "demo"
# The page has the look of reports.
STYLES = {
    "palette.css": ROOT / "kdkit" / "report" / "palette.css",
    "style.css": ROOT / "kdkit" / "report" / "style.css",
    "ecg.css": ROOT / "kdkit_ecg" / "report.css",
}

VERSION = "1.30.0"  # of onnxruntime-web; its archive on npm has this digest, which does not change
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = (
    "dist/ort.wasm.bundle.min.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "package.json",  # which names the licence
)
MANIFEST = "demo.json"

FINDINGS = ("NSR", "AF", "LBBB", "CRBBB", "PVC", "STach")  # an example for each
_FIRST_ID = 4_000_000_000  # beyond the records of any split of Synthetic
_CANDIDATES = 2000  # patients among whom examples are chosen


def main(arguments: Iterable[str] | None = None) -> int:
    """Build the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an .onnx file of `kdkit export RUN --to onnx`")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the page; an older page is replaced")
    parser.add_argument(
        "--runtime", type=Path, help=f"the archive of onnxruntime-web {VERSION}, if there is no network"
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        build(options.model, options.out, options.runtime)
    except (KdkitError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"saved to {options.out}, {size / 1e6:.1f} MB")
    print(f"python -m http.server --directory {options.out} --bind 127.0.0.1 8000")
    return 0


def build(model: Path, out: Path, runtime: Path | None = None) -> None:
    """Write the folder of the page. Raises DataError, and then leaves what is there.

    runtime: the archive of onnxruntime-web; fetched by npm if None.
    """
    if model.suffix.lower() != ".onnx":
        raise DataError(f"{model} is not an .onnx file; expected one of `kdkit export RUN --to onnx`")
    predictor = Predictor(model)
    if predictor.task == "regression":
        raise DataError(f"{model} predicts numbers; expected a network whose probabilities of classes can be shown")
    if out.exists() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise DataError(f"{out} has files of something else; expected a new folder, or one with an older page")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.resolve().parent) as folder:
        page = Path(folder, "page")
        shutil.copytree(PAGE, page)
        for name, source in STYLES.items():
            shutil.copyfile(source, page / name)
        shutil.copyfile(model, page / "model.onnx")
        extract_runtime(runtime or fetch_runtime(Path(folder)), page / "runtime")
        # Networks of leads that are simulated get examples; others start with an empty page.
        has_leads = not missing_leads(LEADS, predictor.leads)
        manifest = {
            "runtime": VERSION,
            "titles": {row["abbreviation"]: row["name"] for row in csv.DictReader(table("classes.csv"))},
            "records": write_examples(page / "records") if has_leads else [],
        }
        (page / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        if out.exists():
            shutil.rmtree(out)
        page.rename(out)


def fetch_runtime(folder: Path) -> Path:
    """Fetch the archive of onnxruntime-web into a folder by npm, and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is not installed; it fetches onnxruntime-web {VERSION}, or pass an archive by --runtime")
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--loglevel=error", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archive = folder / f"onnxruntime-web-{VERSION}.tgz"
    if done.returncode or not archive.is_file():
        reason = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
        raise DataError(f"npm cannot fetch onnxruntime-web {VERSION}: {reason}; pass an archive by --runtime")
    return archive


def extract_runtime(archive: Path, folder: Path) -> None:
    """Extract the files that the page loads. Raises DataError if the archive is not the expected one, to the bit."""
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise DataError(
            f"{archive} is not onnxruntime-web {VERSION}: expected the digest {INTEGRITY}, got sha512-{digest}"
        )
    folder.mkdir()
    with tarfile.open(archive) as files:
        for name in RUNTIME:
            member = files.extractfile(f"package/{name}")
            assert member is not None  # the digest is that of an archive which has it
            (folder / Path(name).name).write_bytes(member.read())


def write_examples(folder: Path) -> list[dict[str, Any]]:
    """Write a simulated WFDB record for each of FINDINGS, and return their names, titles and findings."""
    folder.mkdir()
    simulator = Synthetic(rate=500, length=5000, difficulty=0.4).simulator
    patients = {id: simulator.patient(id) for id in range(_FIRST_ID, _FIRST_ID + _CANDIDATES)}
    names = scored_classes(2020).names
    examples = []
    for finding in FINDINGS:
        # The patient who has little else, and whose age and sex are known.
        known = [id for id, patient in patients.items() if None not in (patient.age, patient.sex)]
        id = min((id for id in known if finding in patients[id].findings), key=lambda id: len(patients[id].findings))
        patient, name = patients[id], f"simulated-{finding.lower()}"
        wfdb.wrsamp(
            name,
            fs=500,
            units=["mV"] * len(LEADS),
            sig_name=list(LEADS),
            p_signal=np.asarray(simulator.record(id).signal, dtype=np.float64).T,  # (time, leads)
            fmt=["16"] * len(LEADS),
            adc_gain=[1000.0] * len(LEADS),
            baseline=[0] * len(LEADS),
            comments=[f"Age: {patient.age:g}", f"Sex: {patient.sex}"],
            write_dir=str(folder),
        )
        findings = [label for label in names if label in patient.findings]
        examples.append({"name": name, "title": ", ".join(findings), "findings": findings})
    return examples


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Write no line for each request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine, as `python -m http.server` does, and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
