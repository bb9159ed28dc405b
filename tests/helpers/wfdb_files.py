"""Write WFDB records for tests."""

import numpy as np
import wfdb

from kdkit_ecg.leads import LEADS


def write_record(folder, name, *, codes="426783006", noise=0, age=50, sex="Male", time=300, rate=500):
    """Write a header and its signal. `noise` is the seed of the samples: equal seeds give equal signals."""
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * 12,
        sig_name=list(LEADS),
        p_signal=np.random.default_rng(noise).normal(0, 0.3, (time, 12)),
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        comments=[f"Age: {age}", f"Sex: {sex}", f"Dx: {codes}"],
        write_dir=str(folder),
    )
