# SPDX-License-Identifier: BSD-3-Clause
"""Poolings whose kernels refuse what is not finite: tokens are read once, and the bad one named."""

import numpy as np
import pytest

from skpool.pooling import FisherVectorPooling, VLADPooling, _base


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "pooling",
    [
        FisherVectorPooling(2, pca_dim=None),
        FisherVectorPooling(2, pca_dim=3),
        VLADPooling(2),
        VLADPooling(2, assignment="soft"),
        VLADPooling(2, normalize_tokens=False),
        VLADPooling(2, n_components=3),
    ],
)
def test_bad_sample_is_named_without_a_second_read(pooling, bad, monkeypatch):
    X = np.random.default_rng(0).normal(size=(30, 6, 5))
    pooling.fit(X)
    reads = []
    plain = _base.check_tokens_finite
    monkeypatch.setattr(_base, "check_tokens_finite", lambda t: reads.append(t) or plain(t))
    pooling.transform(X)
    assert not reads
    X[17, 3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity in the tokens of sample 17"):
        pooling.transform(X)
