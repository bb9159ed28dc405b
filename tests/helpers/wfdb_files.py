"""Write WFDB records for tests. wfdb itself takes fifty times as long, see `write_signals`."""

import numpy as np

from kdkit_ecg.leads import LEADS


def write_record(folder, name, *, codes="426783006", noise=0, age=50, sex="Male", time=300, rate=500):
    """Write a header and its signal. `noise` is the seed of the samples: equal seeds give equal signals."""
    signal = np.random.default_rng(noise).normal(0, 0.3, (time, 12))
    write_signals(folder, name, signal, rate=rate, comments=[f"Age: {age}", f"Sex: {sex}", f"Dx: {codes}"])


def write_signals(folder, name, signal, *, rate, leads=LEADS, unit="mV", comments=()):
    """Write the bytes that wfdb.wrsamp writes in format 16 with a gain of 1000. signal: (time, leads)."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = np.round(signal * 1000).astype("<i2")
    lines = [f"{name} {len(leads)} {rate} {len(steps)}"]
    for lead, title in zip(steps.T, leads, strict=True):
        lines.append(f"{name}.dat 16 1000.0(0)/{unit} 16 0 {lead[0]} {int(lead.sum()) % 65536} 0 {title}")
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"# {comment}" for comment in comments), ""]))
    (folder / f"{name}.dat").write_bytes(steps.tobytes())


def write_matrix(
    folder, name, steps, *, codes="426783006", gain="1000/mV", leads=LEADS, checks=None, record_line="", comments=""
):
    """Write a record as the Challenge does: integers, (leads, time), after the 24 bytes of a MATLAB 4 file.

    checks: lead -> first sample and checksum in the header; by default the right ones. Returns the path of the header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checks = checks or (lambda lead: (lead[0], checksum(lead)))
    lines = [record_line or f"{name} {len(leads)} 500 {steps.shape[1]}"]
    for lead, title in zip(steps, leads, strict=True):
        first, total = checks(lead)
        lines.append(f"{name}.mat 16+24 {gain} 16 0 {first} {total} 0 {title}")
    comments = comments or "#Age: 50\n#Sex: Male\n"
    (folder / f"{name}.hea").write_text("\n".join([*lines, f"{comments}#Dx: {codes}\n"]))
    matrix = np.array([10, len(leads), steps.shape[1], 0, 4], "<i4").tobytes() + b"val\0"
    (folder / f"{name}.mat").write_bytes(matrix + steps.T.astype("<i2").tobytes())
    return folder / f"{name}.hea"


def checksum(lead):
    """Return the sum of the samples as WFDB writes it, a signed number of 16 bits."""
    return (int(lead.sum()) + 32768) % 65536 - 32768
