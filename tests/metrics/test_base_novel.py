# SPDX-License-Identifier: BSD-3-Clause
"""Base classes against novel ones: counts of a small list, scikit-learn's scores on parts."""

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.metrics import accuracy_score

from skpool.metrics import base_novel_accuracy, confusion_base_novel, harmonic_mean_accuracy

BASE = ["cat", "dog"]
Y_TRUE = np.array(["cat", "cat", "dog", "dog", "fox", "fox", "elk", "elk"])
Y_PRED = np.array(["cat", "dog", "dog", "elk", "cat", "fox", "fox", "dog"])


def test_accuracy_on_parts_is_that_of_the_parts():
    base, novel = base_novel_accuracy(Y_TRUE, Y_PRED, base_classes=BASE)
    assert base == accuracy_score(Y_TRUE[:4], Y_PRED[:4])
    assert novel == accuracy_score(Y_TRUE[4:], Y_PRED[4:])


def test_confusion_counts_rows_that_cross():
    # Of four novel rows "cat" and "dog" were predicted, of four base rows one "elk".
    assert confusion_base_novel(Y_TRUE, Y_PRED, base_classes=BASE) == (0.5, 0.25)


def test_a_constant_predictor_of_a_base_class_takes_all_novel_rows():
    constant = np.full(8, "cat")
    assert confusion_base_novel(Y_TRUE, constant, base_classes=BASE) == (1.0, 0.0)
    assert base_novel_accuracy(Y_TRUE, constant, base_classes=BASE) == (0.5, 0.0)


def test_of_no_novel_rows_nothing_is_defined():
    base, novel = base_novel_accuracy(Y_TRUE[:4], Y_PRED[:4], base_classes=BASE)
    assert base == 0.5
    assert np.isnan(novel)


def test_harmonic_mean_is_that_of_scipy():
    base, novel = np.array([0.9, 0.5, 0.3]), np.array([0.1, 0.5, 0.7])
    expected = hmean(np.stack([base, novel]), axis=0)
    np.testing.assert_allclose(harmonic_mean_accuracy(base, novel), expected)


def test_harmonic_mean_of_zeros_is_0_and_of_nan_is_nan():
    found = harmonic_mean_accuracy([0.0, 0.5, 0.5], [0.0, 0.0, np.nan])
    np.testing.assert_array_equal(found, [0.0, 0.0, np.nan])


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="of one length"):
        base_novel_accuracy(Y_TRUE, Y_PRED[:3], base_classes=BASE)
