# SPDX-License-Identifier: BSD-3-Clause
"""The suite itself: every check must catch an estimator that breaks what it is about.

Each mutant below is a sound estimator with one fault; the test names the check that has to fail.
"""

import numpy as np
import pytest
import torch
from nets import token_backbone
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LinearRegression

from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import BasePooling, TokenPooling
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import TokenArray
from skpool.utils.estimator_checks import (
    check_estimator,
    estimator_checks_generator,
    parametrize_with_checks,
)


class MyPooling(BasePooling):
    """What somebody else would write: the mean, in a few lines."""

    def __init__(self, *, scope="patch", empty="raise", batch_size=256):
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size

    def _pool(self, tokens, mask):
        tokens = tokens.float() if tokens.dtype == torch.float16 else tokens
        if mask is None:
            return tokens.mean(1)
        tokens = tokens.where(mask[..., None], 0.0)
        return tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)

    def _fingerprint(self):
        return None


class IgnoresMask(MyPooling):
    def _pool(self, tokens, mask):
        return super()._pool(tokens, None)


class MultipliesByMask(MyPooling):
    def _pool(self, tokens, mask):
        if mask is None:
            return super()._pool(tokens, None)
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


class CentersBatch(MyPooling):
    def _pool(self, tokens, mask):
        vectors = super()._pool(tokens, mask)
        return vectors - vectors.mean(0)


class SumsInHalf(MyPooling):
    def _pool(self, tokens, mask):
        return tokens.mean(1) if tokens.dtype == torch.float16 else super()._pool(tokens, mask)


class AlwaysSingle(MyPooling):
    def _pool(self, tokens, mask):
        return super()._pool(tokens.float(), mask)


class GivesNumpy(MyPooling):
    def transform(self, X):
        out = super().transform(X)
        return out.numpy() if isinstance(out, torch.Tensor) else out


class WritesToTokens(MyPooling):
    def _pool(self, tokens, mask):
        vectors = super()._pool(tokens, mask)
        tokens[:, 0] = 0
        return vectors


class TrustsOrder(MyPooling):
    def transform(self, X):
        if not isinstance(X, TokenArray):
            return super().transform(X)
        batches = [self._pool(b.tokens, b.mask) for b in X.iter_batches()]
        return torch.cat(batches).numpy()


class AcceptsEmptySample(MyPooling):
    def transform(self, X):
        return MyPooling(empty="zero").transform(X)


class SetsStateInTransform(MyPooling):
    def transform(self, X):
        self.n_calls_ = getattr(self, "n_calls_", 0) + 1
        return super().transform(X)


class ForgetsNames(MyPooling):
    @property
    def _n_features_out(self):
        return 1


class FillsUnreadable(MyPooling):
    def transform(self, X):
        out = super().transform(X)
        return np.nan_to_num(out) if isinstance(out, np.ndarray) else out


class PaddingMatters(MyPooling):
    """The number of padded tokens leaks into the vector."""

    def _pool(self, tokens, mask):
        return super()._pool(tokens, mask) + (0 if mask is None else mask.shape[1])


class LearnsUnderOneName(MyPooling):
    def fit(self, X, y=None):
        super().fit(X)
        self.offset_ = float(np.asarray(X).mean())
        return self

    def _pool(self, tokens, mask):
        return super()._pool(tokens, mask) - getattr(self, "offset_", 0.0)

    def _fingerprint(self):
        return "00"


POOLING_MUTANTS = {
    LearnsUnderOneName: "check_store_keeps_what_was_learned_apart",
    IgnoresMask: "check_masked_tokens_are_never_read",
    MultipliesByMask: "check_masked_tokens_are_never_read",
    CentersBatch: "check_rows_are_independent",
    SumsInHalf: "check_float_type_is_kept",
    AlwaysSingle: "check_float_type_is_kept",
    GivesNumpy: "check_tensor_gives_tensor_of_same_values",
    WritesToTokens: "check_tokens_are_not_changed",
    TrustsOrder: "check_lazy_tokens_equal_array",
    AcceptsEmptySample: "check_sample_without_real_token_is_refused",
    SetsStateInTransform: "check_transform_changes_no_state",
    ForgetsNames: "check_feature_names_match_width",
    FillsUnreadable: "check_unreadable_rows_are_nan",
    PaddingMatters: "check_full_mask_equals_no_mask",
}


class Rounds(L2Normalizer):
    def transform(self, X):
        out = super().transform(X)
        return out.astype(np.float64) if isinstance(out, np.ndarray) else out


class SeesOtherRows(L2Normalizer):
    def transform(self, X):
        return super().transform(X) / len(X)


class KeepsInput(L2Normalizer):
    def fit(self, X, y=None):
        super().fit(X)
        self.first_ = X[0]
        return self

    def transform(self, X):
        return super().transform(X) + np.asarray(self.first_).mean()


class SilentOnNaN(L2Normalizer):
    def fit(self, X, y=None):
        return super().fit(X.nan_to_num() if isinstance(X, torch.Tensor) else np.nan_to_num(X))


class LosesFirstBatch(Whitening):
    def partial_fit(self, X, y=None):
        if hasattr(self, "moments_") and self.n_samples_seen_ < 10:
            del self.moments_
        return super().partial_fit(X)


class ChangesBeforeChecking(Whitening):
    def partial_fit(self, X, y=None):
        self.n_calls_ = getattr(self, "n_calls_", 0) + 1
        return super().partial_fit(X)


class ForgetsHalf(Whitening):
    def forget(self, X):
        return super().forget(X[: (len(X) + 1) // 2])


VECTOR_MUTANTS = {
    Rounds: "check_array_gives_array_of_its_float_type",
    SeesOtherRows: "check_rows_do_not_see_each_other",
    KeepsInput: "check_state_does_not_share_memory_with_input",
    SilentOnNaN: "check_bad_row_is_named_and_changes_nothing",
    LosesFirstBatch: "check_parts_equal_whole",
    ChangesBeforeChecking: "check_failed_partial_fit_changes_nothing",
    ForgetsHalf: "check_forget_equals_never_seen",
}


class ReversedColumns(NearestClassMeanClassifier):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


class TakesMissingLabels(NearestClassMeanClassifier):
    def fit(self, X, y, sample_weight=None):
        y = [0 if label is None or label != label else label for label in y]
        return super().fit(X, y, sample_weight)


class LastClassForMinusOne(NearestClassMeanClassifier):
    def fit(self, X, y, sample_weight=None):
        y = np.asarray(y)
        if y.dtype.kind == "i":
            y = np.where(y == -1, y.max(), y)
        return super().fit(X, y, sample_weight)


class RefusesNewClasses(NearestClassMeanClassifier):
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        if hasattr(self, "classes_") and set(y) - set(self.classes_.tolist()):
            raise ValueError("unknown class")
        return super().partial_fit(X, y, classes, sample_weight)


class PredictsAnnounced(NearestClassMeanClassifier):
    def class_scores(self, X):
        scores = super().class_scores(X)
        scores[np.isinf(scores)] = 1e3
        return scores


class OverwritesOnFailure(NearestClassMeanClassifier):
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        if hasattr(self, "moments_"):
            self.moments_.update(np.zeros((1, self.n_features_in_)), self.classes_[:1])
        return super().partial_fit(X, y, classes, sample_weight)


class UsesOneOfEachClass(NearestClassMeanClassifier):
    """Of a batch only the last row of a class counts, as in a well-known streaming LDA."""

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        last = len(y) - 1 - np.unique(np.asarray(y)[::-1], return_index=True)[1]
        return super().partial_fit(X[last], np.asarray(y)[last], classes)


class MergeShares(NearestClassMeanClassifier):
    def merge(self, other):
        super().merge(other)
        other.moments_ = self.moments_
        return self


CLASSIFIER_MUTANTS = {
    ReversedColumns: "check_predict_proba_is_a_distribution",
    TakesMissingLabels: "check_bad_labels_are_refused_and_change_nothing",
    LastClassForMinusOne: "check_label_kinds_agree",
    RefusesNewClasses: "check_new_classes_in_any_call",
    PredictsAnnounced: "check_announced_class_is_listed_and_never_predicted",
    OverwritesOnFailure: "check_failed_partial_fit_changes_nothing",
    UsesOneOfEachClass: "check_parts_equal_whole",
    MergeShares: "check_merge_equals_one_learner",
}


class Eager(FeatureExtractor):
    def transform(self, X):
        tokens = super().transform(X)
        np.asarray(tokens)
        return tokens


class NamesNoFile(FeatureExtractor):
    def transform(self, X):
        return super().transform(np.stack(list(ImageSequence(X))))


class BatchesMatter(FeatureExtractor):
    def transform(self, X):
        tokens = np.asarray(super().transform(X))
        size = self.batch_size if self.batch_size != "auto" else 16
        return TokenArray.from_array(tokens + np.float32(0.01 * size))


class DropsPrefix(FeatureExtractor):
    def transform(self, X):
        return np.asarray(super().transform(X))[:, :1]


EXTRACTOR_MUTANTS = {
    Eager: "check_transform_computes_nothing",
    NamesNoFile: "check_unreadable_image_is_named",
    BatchesMatter: "check_batch_size_does_not_matter",
    DropsPrefix: "check_result_is_tokens",
}
MUTANTS = POOLING_MUTANTS | VECTOR_MUTANTS | CLASSIFIER_MUTANTS | EXTRACTOR_MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_check_catches_the_fault(mutant):
    estimator = mutant(token_backbone()) if mutant in EXTRACTOR_MUTANTS else mutant()
    checks = {check.__name__: check for _, check in estimator_checks_generator(estimator)}
    with pytest.raises(Exception) as caught:
        checks[MUTANTS[mutant]](estimator)
    assert not isinstance(caught.value, (NameError, AttributeError))


def test_pooling_of_a_third_party_passes():
    assert {result["status"] for result in check_estimator(MyPooling())} == {"passed"}


# How the suite is driven.


def names(estimator: BaseEstimator) -> set[str]:
    return {check.__name__ for _, check in estimator_checks_generator(estimator)}


def test_tags_decide_which_checks_run():
    assert "check_masked_tokens_are_never_read" in names(TokenPooling())
    assert "check_unreadable_image_gives_nan" in names(FeatureExtractor())
    assert "check_label_kinds_agree" in names(NearestClassMeanClassifier())
    assert "check_parts_equal_whole" in names(NearestClassMeanClassifier())
    assert "check_parts_equal_whole" in names(Whitening())
    assert "check_parts_equal_whole" not in names(L2Normalizer())
    assert "check_label_kinds_agree" not in names(Whitening())
    assert "check_tensor_equals_array" in names(LinearRegression())


def test_names_of_checks_are_distinct_and_described():
    for estimator in (TokenPooling(), FeatureExtractor(), NearestClassMeanClassifier()):
        checks = [check for _, check in estimator_checks_generator(estimator)]
        assert len({check.__name__ for check in checks}) == len(checks)
        assert all(check.__doc__ for check in checks)


def test_class_instead_of_instance_is_refused():
    with pytest.raises(TypeError, match=r"pass an instance: TokenPooling\(\)"):
        check_estimator(TokenPooling)


def test_generate_only_runs_nothing():
    pairs = list(check_estimator(IgnoresMask(), generate_only=True))
    assert len(pairs) == len(names(TokenPooling()))


def test_first_failure_is_raised():
    with pytest.raises(AssertionError, match="ragged list and single samples"):
        check_estimator(IgnoresMask())


def test_failures_can_be_recorded_alone():
    seen = []
    results = check_estimator(IgnoresMask(), on_fail=None, callback=lambda **r: seen.append(r))
    failed = {r["check_name"] for r in results if r["status"] == "failed"}
    assert "check_masked_tokens_are_never_read" in failed
    assert seen == results
    assert all((r["exception"] is None) == (r["status"] == "passed") for r in results)


def test_failures_can_be_warnings():
    with pytest.warns(UserWarning, match="IgnoresMask fails check_masked_tokens_are_never_read"):
        check_estimator(
            IgnoresMask(),
            on_fail="warn",
            expected_failed_checks=dict.fromkeys(
                names(IgnoresMask()) - {"check_masked_tokens_are_never_read"}, "not of interest"
            ),
        )


def test_expected_failure_is_recorded_as_such():
    reasons = dict.fromkeys(names(IgnoresMask()), "it ignores the mask")
    results = {
        r["check_name"]: r for r in check_estimator(IgnoresMask(), expected_failed_checks=reasons)
    }
    result = results["check_masked_tokens_are_never_read"]
    assert result["status"] == "xfail" and result["expected_to_fail"]
    assert result["expected_to_fail_reason"] == "it ignores the mask"


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="on_fail='ignore' is not valid"):
        check_estimator(TokenPooling(), on_fail="ignore")


def test_parametrize_marks_expected_failures():
    def expected(estimator):
        return {"check_masked_tokens_are_never_read": "why not"}

    decorator = parametrize_with_checks([IgnoresMask()], expected_failed_checks=expected)
    cases = decorator.args[1]
    marked = [case for case in cases if case.marks]
    assert [case.values[1].__name__ for case in marked] == ["check_masked_tokens_are_never_read"]
    assert marked[0].marks[0].kwargs == {"reason": "why not", "strict": True}


def test_estimator_is_never_changed():
    estimator = Whitening()
    check_estimator(estimator)
    assert vars(estimator) == vars(Whitening())


class Lonely(ClassifierMixin, BaseEstimator):
    """Without any method: the checks fail by themselves and do not crash the suite."""


def test_estimator_without_methods_fails_every_check():
    results = check_estimator(Lonely(), on_fail=None)
    assert {result["status"] for result in results} <= {"failed", "skipped"}
    assert "failed" in {result["status"] for result in results}
