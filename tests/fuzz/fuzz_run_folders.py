"""Damage every file of a run folder: whatever it holds, its readers return a result or raise a KdkitError."""

import json
import re

from hypothesis import strategies as st

from kdkit import RunOptions, Study, Trial
from kdkit.engine.storage.finished_run import read_class_table, read_metrics
from kdkit.engine.storage.measurements import read_measurements
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.nets.weights import read_state_dicts
from kdkit.utils.read_json import read_json
from kdkit.utils.sealed import UNSEALED, seal
from tests.fuzz.damage import DAMAGE, VALUES, damaged
from tests.fuzz.meter import for_inputs
from tests.helpers.callbacks import KillAfterEpoch, kill_run
from tests.helpers.stages import three

TEXT = '[]{}",:0123456789.eE+-nulltrfaseNI \n\\'  # most of which is JSON


def write_runs(folder):
    """Write a study with one finished run, and a run that was interrupted after its first epoch."""
    (result,) = study_of(folder).run(RunOptions(device="cpu"))
    assert result.state == "finished", result.error
    kill_run(three, folder / "stopped", KillAfterEpoch(1), device="cpu")


def study_of(folder):
    return Study(folder, [Trial(name="run", recipe=three)])


def files_of(folder, *patterns):
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def read_reports(folder):
    """Read what `kdkit classes`, comparisons and studies read of a run."""
    for net in read_metrics(folder).results:
        read_class_table(folder, net, resamples=2)


def fuzz_files(meter, files, readers_of, inputs, first_seed=0):
    """Damage one of these files at a time. readers_of: returns the readers to call for a file."""

    @for_inputs(meter, inputs, first_seed, file=st.sampled_from(files), damage=DAMAGE, resealed=st.booleans())
    def check(file, damage, resealed):
        content = file.read_bytes()
        changed = damaged(content, damage)
        try:
            file.write_bytes(with_checksum(changed) if resealed else changed)
            meter.read(*readers_of(file))
        finally:
            file.write_bytes(content)


def with_checksum(content):
    """Return a file with the checksum of its content, which whoever changes a file can compute too."""
    zeros = re.sub(rb"sha256:[0-9a-f]{64}", UNSEALED.encode(), content, count=1)
    return b"".join(map(bytes, seal(zeros))) if UNSEALED.encode() in zeros else content


def fuzz_reports(folder, meter, inputs, first_seed=0):
    """Damage what reports read of a run."""
    run_folder = folder / "run"
    files = files_of(run_folder, "run.json", "metrics.json", "measurements.json", "*/predictions-*.safetensors")
    assert len(files) == 9
    readers = (
        lambda: read_reports(run_folder),
        lambda: read_metrics(run_folder),
        lambda: read_measurements(run_folder),
    )
    fuzz_files(meter, files, lambda _file: readers, inputs, first_seed)


def fuzz_study(folder, meter, inputs, first_seed=0):
    """Damage what a study reads of its runs."""
    files = files_of(folder / "run", "*.json", "*/predictions-student-*.safetensors")
    assert {file.name for file in files} >= {"run.json", "metrics.json", "trial.json"}
    study = study_of(folder)
    readers = (
        lambda: study.metrics("run"),
        lambda: study.predictions("run", "student"),
        lambda: study._require_unchanged(study.trials[0], RunOptions(device="cpu")),
    )
    fuzz_files(meter, files, lambda _file: readers, inputs, first_seed)


def fuzz_stages(folder, meter, inputs, first_seed=0):
    """Damage what a resumed run reads of its stages."""
    patterns = ("history.jsonl", "checkpoint-*", "stage.json", "weights.safetensors")
    files = files_of(folder, *(f"*/*/{pattern}" for pattern in patterns))
    names = {file.name for file in files}
    assert names >= {"history.jsonl", "stage.json", "weights.safetensors"}
    assert any(name.startswith("checkpoint-") for name in names)

    def readers_of(file):
        stage = StageFolder(file.parent, writes=False)
        yield stage.load_finished
        yield stage.load_checkpoint
        yield lambda: stage.load_weights(file.parent.name.split("-", 1)[1])
        if file.suffix == ".safetensors":  # as `kdkit evaluate --weights FILE`
            yield lambda: read_state_dicts(file, "net")

    fuzz_files(meter, files, readers_of, inputs, first_seed)


def fuzz_records(folder, meter, inputs, first_seed=0):
    """Damage the record of a run that is resumed."""
    file = folder / "stopped" / "run.json"
    record = json.loads(file.read_text())
    readers = (lambda: RunFolder.reopen(folder / "stopped", record),)
    fuzz_files(meter, [file], lambda _file: readers, inputs, first_seed)


def fuzz_json(folder, meter, inputs, first_seed=0):
    """Read any bytes, and texts that are almost JSON."""
    file = folder / "file.json"

    def read():
        try:
            value = read_json(file)
        except ValueError:
            return "refused"
        json.dumps(value, allow_nan=False)
        return "read"

    texts = VALUES.map(json.dumps).map(str.encode)
    strategy = st.one_of(
        st.binary(max_size=300),
        st.text(TEXT, max_size=120).map(str.encode),
        texts,
        st.lists(texts, max_size=4).map(b"\n".join),
        st.builds(damaged, texts, DAMAGE),
    )

    @for_inputs(meter, inputs, first_seed, content=strategy)
    def check(content):
        file.write_bytes(content)
        meter.read(read)
