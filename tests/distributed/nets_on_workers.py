# SPDX-License-Identifier: BSD-3-Clause
"""What workers must be able to import: networks that are slow or fail, and a pooling function."""

import time

import numpy as np
from nets import CountingNet, TokenNet


class SlowNet(CountingNet):
    """Takes a while for a batch, so that there is a middle of the work."""

    def forward(self, images):
        time.sleep(0.03)
        return super().forward(images)


class FailingNet(TokenNet):
    """Cannot take bright images."""

    def forward(self, images):
        if images.mean() > 0.5:
            raise RuntimeError("too bright")
        return super().forward(images)


def mean_of_tokens(tokens, mask=None):
    """A function that has no name in a store."""
    return tokens.mean(dim=1)


def make_rows(n):
    """Rows that a worker makes."""
    return np.random.default_rng(n).normal(size=(n, 4))


def slow_rows(rows, seed):
    """The rows, after a while."""
    time.sleep(0.1 * np.random.default_rng(seed).random())
    return rows
