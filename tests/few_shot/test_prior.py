# SPDX-License-Identifier: BSD-3-Clause
"""The mix of classes among queries, from posteriors whose mix is known."""

import numpy as np
import pytest
from scipy.stats import norm

from skpool.few_shot import estimate_query_prior


def posteriors(mix, prior, n=20_000, seed=0):
    """Exact posteriors, for classes of frequencies `prior`, of rows drawn with another mix."""
    rng = np.random.default_rng(seed)
    x = rng.choice(len(mix), size=n, p=mix) * 2.0 + rng.normal(size=n)
    joint = np.array([norm.pdf(x, 2.0 * k) for k in range(len(mix))]).T * prior
    return joint / joint.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("prior", [[1 / 3, 1 / 3, 1 / 3], [0.6, 0.3, 0.1]])
def test_em_recovers_the_mix(prior):
    mix = [0.1, 0.2, 0.7]
    found = estimate_query_prior(posteriors(mix, prior), prior=prior, pseudo_count=0)
    np.testing.assert_allclose(found, mix, atol=0.015)


def test_em_without_pseudo_counts_is_the_most_likely_mix():
    P = posteriors([0.3, 0.7], [0.5, 0.5], n=50)
    grid = np.linspace(1e-4, 1 - 1e-4, 9999)
    likelihood = [np.log(P @ np.array([pi, 1 - pi])).sum() for pi in grid]
    found = estimate_query_prior(P, pseudo_count=0)
    np.testing.assert_allclose(found[0], grid[np.argmax(likelihood)], atol=2e-4)


def test_count_is_the_mean_of_the_posteriors_with_pseudo_counts():
    P = posteriors([0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], n=30)
    found = estimate_query_prior(P, method="count", pseudo_count=2.0)
    np.testing.assert_allclose(found, (P.sum(axis=0) + 2) / (30 + 6), atol=1e-12)


def test_pseudo_counts_pull_towards_equal_shares():
    P = posteriors([0.05, 0.95], [0.5, 0.5], n=40)
    few, many = (estimate_query_prior(P, pseudo_count=a) for a in (0.0, 1e6))
    assert few[0] < 0.2
    np.testing.assert_allclose(many, 0.5, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"P": [[0.5, 0.6]]}, "no distributions"),
        ({"P": np.empty((0, 2))}, "at least one row"),
        ({"P": [[np.nan, 1.0]]}, "NaN"),
        ({"P": [[0.5, 0.5]], "method": "best"}, "method='best'"),
        ({"P": [[0.5, 0.5]], "pseudo_count": -1}, "pseudo_count=-1"),
        ({"P": [[0.5, 0.5]], "prior": [0.0, 1.0]}, "positive frequencies"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_query_prior(**options)
