# SPDX-License-Identifier: BSD-3-Clause
"""The checks of steps that take texts pass for a sound step and catch a broken one."""

import numpy as np
import pytest
from text_nets import letter_backbone

from skpool.extraction import TextFeatureExtractor
from skpool.utils.estimator_checks import check_estimator, estimator_checks_generator


class BatchesMatter(TextFeatureExtractor):
    def transform(self, X):
        size = 1 if self.batch_size == "auto" else self.batch_size
        return super().transform(X) + 0.01 * size


class OrderMatters(TextFeatureExtractor):
    def transform(self, X):
        return super().transform(X) + np.arange(len(X))[:, None]


class ReadsAnything(TextFeatureExtractor):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return super().transform([str(x) for x in X])


class DropsEmpty(TextFeatureExtractor):
    def transform(self, X):
        return super().transform([x for x in X if x])


class Forgets(TextFeatureExtractor):
    def _keeps_tokens(self, device):
        return False

    def _open_store(self):
        from skpool.stores import MemoryCache

        return MemoryCache(0)


class KeepsFirst(TextFeatureExtractor):
    def _backbone(self):
        self.__dict__.setdefault("kept", super()._backbone())
        return self.kept


MUTANTS = {
    BatchesMatter: "check_batch_of_texts_does_not_matter",
    OrderMatters: "check_texts_are_independent",
    ReadsAnything: "check_bad_texts_are_refused",
    DropsEmpty: "check_result_is_vectors_or_tokens",
    Forgets: "check_each_text_is_computed_once",
    KeepsFirst: "check_set_params_of_texts_takes_effect",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_check_of_texts_catches_the_fault(mutant):
    estimator = mutant(letter_backbone())
    checks = {check.__name__: check for _, check in estimator_checks_generator(estimator)}
    with pytest.raises(AssertionError):
        checks[MUTANTS[mutant]](estimator)


def test_sound_step_passes_or_says_why_not():
    results = check_estimator(TextFeatureExtractor(letter_backbone()))
    assert {result["status"] for result in results} == {"passed", "skipped"}
    skipped = [r["check_name"] for r in results if r["status"] == "skipped"]
    assert skipped == ["check_pickle_of_texts_carries_no_weights"]
