"""The audit recomputes a share of the cached outputs that are read."""

import pytest
import torch

from kdkit import Batch, CacheSettings, TeacherOutput
from kdkit.teachers import TeacherSession
from kdkit.teachers.cache import Audit, Codec


class Session(TeacherSession):
    """A teacher that counts its samples."""

    samples = 0

    def __call__(self, batch):
        self.samples += len(batch)
        return TeacherOutput(batch.inputs)


@pytest.mark.parametrize(("share", "size"), [(0.01, 64), (0.5, 64), (1.0, 64), (1.0, 3)])
def test_the_share_of_outputs_that_the_settings_ask_for_is_recomputed(share, size):
    session, batch = Session(), Batch(torch.randn(size, 2), torch.zeros(size, dtype=torch.int64))
    codec = Codec(CacheSettings(), session(batch))
    session.samples = 0
    audit = Audit("teacher", session, codec, share)
    for _ in range(100):
        audit.spot_check(batch, codec.encode(TeacherOutput(batch.inputs)), None)
    assert abs(session.samples - share * 100 * size) <= 4
