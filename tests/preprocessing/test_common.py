# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's own suite on every estimator of the room."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.preprocessing import L2Normalizer, PowerNormalizer, Whitening

ESTIMATORS = [
    L2Normalizer(),
    PowerNormalizer(),
    PowerNormalizer(l2=True, l1_first=True),
    Whitening(),
    Whitening(method="zca", shrinkage="oas"),
    Whitening(method="pca_cor", shrinkage="ledoit_wolf", l2=True),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)
