"""Limb leads that are derived from any two others equal the recorded ones, to the rounding of their integers."""

from itertools import combinations

import numpy as np
import pytest

from kdkit_ecg.leads import LIMB_LEADS, derivation
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.source import select_leads

# The step of the converter in uV. All files have steps of 1 uV, to which the releases of the last two rounded their
# samples.
DATABASES = {"cpsc_2018": 1, "georgia": 1, "ptb": 1, "ptb-xl": 1, "ludb": 1, "chapman_shaoxing": 4.88, "ningbo": 4.88}


@pytest.mark.parametrize("database", DATABASES)
def test_any_two_limb_leads_of_a_real_record_give_the_other_four(shared, database):
    for path in sorted((shared / "ecg" / database).glob("*.hea"))[:3]:
        record = read_header(path).read()
        recorded = dict(zip(record.leads, record.signal, strict=True))
        for pair in combinations(LIMB_LEADS, 2):
            signal = np.stack([recorded[lead] for lead in pair])
            derived = select_leads(signal, pair, tuple(LIMB_LEADS))
            for lead, samples in zip(LIMB_LEADS, derived, strict=True):
                factors = {lead: 1.0} if lead in pair else derivation(pair, lead)
                # Each lead is off by less than a step, as some releases cut digits off; so is the recorded one.
                steps = 0 if lead in pair else 1 + sum(map(abs, factors.values()))
                assert np.abs(samples - recorded[lead]).max() * 1000 <= DATABASES[database] * steps + 0.01
