# SPDX-License-Identifier: BSD-3-Clause
"""The checks of steps on tokens pass for sound steps, and each catches a broken one.

Every mutant below is a sound step with one fault; the test names the check that has to fail.
"""

import numpy as np
import pytest
import torch
from sklearn.utils.validation import check_is_fitted

from skpool.pooling import BaseTokenTransformer
from skpool.preprocessing import BaseRowMap, L2Normalizer
from skpool.stores import TokenArray
from skpool.utils.estimator_checks import check_estimator, estimator_checks_generator


def facts_of(tokens, **other):
    return {"n_prefix_tokens": tokens.n_prefix_tokens, "grid": tokens.grid} | other


class Doubles(BaseTokenTransformer):
    """What somebody else would write: patches times two, in a few lines."""

    def __init__(self, *, batch_size=256):
        self.batch_size = batch_size

    def _mapped(self, tokens):
        first = tokens.n_prefix_tokens
        return tokens.map(lambda x, mask: self._map(x, mask, first))

    def _map(self, tokens, mask, first):
        tokens = tokens.float() if tokens.dtype == torch.float16 else tokens
        if mask is not None:
            tokens = tokens.where(mask[..., None], 0.0)
        return torch.cat([tokens[:, :first], self._patches(tokens[:, first:])], dim=1)

    def _patches(self, patches):
        return 2 * patches


class Centers(Doubles):
    """A sound step that learns: patches less their mean."""

    def _fit_tokens(self, tokens):
        total, count = 0.0, 0
        for _, values, mask in tokens.iter_batches(self.batch_size):
            for i, sample in enumerate(values):
                real = sample.double() if mask is None else sample[mask[i]].double()
                total, count = total + real.sum(0), count + len(real)
        self.mean_ = (total / count).numpy()

    def _check_ready(self):
        check_is_fitted(self)

    def _patches(self, patches):
        return patches - torch.from_numpy(self.mean_).to(patches)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags


class Computes(Doubles):
    def transform(self, X):
        out = super().transform(X)
        if isinstance(out, TokenArray):
            out = TokenArray.from_array(np.asarray(out), mask=out.mask, **facts_of(out))
        return out


class TrustsOrder(Doubles):
    def transform(self, X):
        out = super().transform(X)
        if isinstance(out, TokenArray):
            values = torch.cat([batch.tokens for batch in out.iter_batches()])
            out = TokenArray.from_array(values, mask=out.mask, **facts_of(out))
        return out


class GivesTokenArray(Doubles):
    def transform(self, X):
        out = super().transform(X)
        return TokenArray.from_array(out) if isinstance(out, np.ndarray) else out


class GivesNumpy(Doubles):
    def transform(self, X):
        out = super().transform(X)
        return out.numpy() if isinstance(out, torch.Tensor) else out


class FlattensMaps(Doubles):
    def transform(self, X):
        out = super().transform(X)
        return out.reshape(len(out), -1, out.shape[-1]) if np.ndim(X) == 4 else out


class PadsLists(Doubles):
    def transform(self, X):
        out = super().transform(X)
        return np.asarray(out) if isinstance(X, list) else out


class LosesPrefix(Doubles):
    def _mapped(self, tokens):
        return super()._mapped(tokens).map(lambda x, mask: x, n_prefix_tokens=0, grid=None)


class WrongGrid(Doubles):
    def _mapped(self, tokens):
        return super()._mapped(tokens).map(lambda x, mask: x, grid=(3, 3))


class HidesItsLength(Doubles):
    def _mapped(self, tokens):
        return super()._mapped(tokens).map(lambda x, mask: x[:, :-1])


class MasksOneThingAndSaysAnother(Doubles):
    def _mapped(self, tokens):
        out = super()._mapped(tokens)
        source = out._source
        if tokens.mask is not None:
            source.mask = lambda rows: np.roll(tokens[rows].mask, 1, axis=0)
        return out


class TurnsTheMask(Doubles):
    def _mapped(self, tokens):
        mapped = tokens.map(lambda x, mask: 2 * x, remask=lambda mask: mask.flip(1))
        return (
            mapped
            if tokens.n_prefix_tokens == 0 or tokens.mask is not None
            else (super()._mapped(tokens))
        )


class AlwaysSingle(Doubles):
    def _map(self, tokens, mask, first):
        return super()._map(tokens.float(), mask, first)


class ComputesInHalf(Doubles):
    def _map(self, tokens, mask, first):
        if tokens.dtype != torch.float16:
            return super()._map(tokens, mask, first)
        return torch.cat([tokens[:, :first], 2 * tokens[:, first:]], dim=1).float()


class LeaksPadding(Doubles):
    def _map(self, tokens, mask, first):
        return super()._map(tokens, mask, first) + 0 * tokens.mean(1, keepdim=True)


class PassesPadding(Doubles):
    def _map(self, tokens, mask, first):
        return super()._map(tokens, None, first)


class LengthMatters(Doubles):
    def _map(self, tokens, mask, first):
        out = super()._map(tokens, mask, first)
        return out if mask is None else out + mask.shape[1]


class CentersBatch(Doubles):
    def _patches(self, patches):
        return patches - patches.mean(0)


class LengthOfBatchMatters(Doubles):
    def _patches(self, patches):
        return patches + (len(patches) > 1)


class LearnsByBatch(Centers):
    def _fit_tokens(self, tokens):
        parts = [
            batch.tokens.float().mean((0, 1)) for batch in tokens.iter_batches(self.batch_size)
        ]
        self.mean_ = torch.stack(parts).mean(0).double().numpy()


class MapsTwice(Doubles):
    """What comes batch by batch is right, what is reduced to vectors is not."""

    def _mapped(self, tokens):
        out = super()._mapped(tokens)
        source = out._source
        rightly = source.reduce
        source.reduce = lambda rows, function, **options: 2 * rightly(rows, function, **options)
        return out


class OneName(Centers):
    def _mapped(self, tokens):
        first = tokens.n_prefix_tokens
        return tokens.map(lambda x, mask: self._map(x, mask, first), fingerprint="00")


class NameOfTheTokens(Doubles):
    """Vectors are looked up as if there were no step."""

    def _mapped(self, tokens):
        out = super()._mapped(tokens)
        below = out._source._tokens

        def reduce(rows, function, *, fingerprint=None, batch_size=None):
            whole = lambda x, mask: function(self._map(x, mask, below.n_prefix_tokens), mask)  # noqa: E731
            return below[rows].reduce(whole, fingerprint=fingerprint)

        out._source.reduce = reduce
        return out


class FillsUnreadable(Doubles):
    def transform(self, X):
        out = super().transform(X)
        if isinstance(out, TokenArray) and not out.in_memory:
            return TokenArray.from_array(np.nan_to_num(np.asarray(out)), **facts_of(out))
        return out


class SilentOnNaN(Doubles):
    def transform(self, X):
        if isinstance(X, TokenArray) and X.in_memory and X.mask is None:
            X = TokenArray.from_array(np.nan_to_num(np.asarray(X)), **facts_of(X))
        return super().transform(X)


class ForgetsOnRefusal(Centers):
    def fit(self, X, y=None):
        vars(self).pop("mean_", None)
        return super().fit(X)


class AnyWidth(Doubles):
    def transform(self, X):
        return Doubles().transform(X)


class AnyRank(Doubles):
    def fit(self, X, y=None):
        return super().fit(X[0] if np.ndim(X) == 5 else X)


class NeedsFit(Doubles):
    def _check_ready(self):
        if not hasattr(self, "n_features_in_"):
            raise ValueError("Call fit first.")


class FitMatters(Doubles):
    def _patches(self, patches):
        return patches * (2 if hasattr(self, "n_features_in_") else 3)


class LosesState(Centers):
    def __getstate__(self):
        state = dict(vars(self))
        return state | ({"mean_": np.zeros(12)} if "mean_" in state else {})


class HasNames(Doubles):
    def get_feature_names_out(self, input_features=None):
        return np.array([f"x{i}" for i in range(12)], dtype=object)


class WritesToTokens(Doubles):
    def _patches(self, patches):
        return patches.mul_(2)

    def _map(self, tokens, mask, first):
        return torch.cat([tokens[:, :first], self._patches(tokens[:, first:])], dim=1)


class CountsCalls(Doubles):
    def transform(self, X):
        self.n_calls_ = getattr(self, "n_calls_", 0) + 1
        return super().transform(X)


class KeepsTensors(Centers):
    def _fit_tokens(self, tokens):
        super()._fit_tokens(tokens)
        self.mean_on_device_ = torch.from_numpy(self.mean_)


class DoublesPrefixToo(Doubles):
    def _map(self, tokens, mask, first):
        return super()._map(tokens, mask, 0)


TOKEN_MUTANTS = {
    Computes: "check_token_array_stays_lazy",
    TrustsOrder: "check_lazy_tokens_equal_those_in_memory",
    GivesTokenArray: "check_array_of_tokens_gives_array",
    GivesNumpy: "check_tensor_of_tokens_gives_tensor",
    FlattensMaps: "check_map_gives_map",
    PadsLists: "check_ragged_samples_equal_samples_alone",
    LosesPrefix: "check_facts_of_tokens_hold",
    WrongGrid: "check_facts_of_tokens_hold",
    HidesItsLength: "check_facts_of_tokens_hold",
    MasksOneThingAndSaysAnother: "check_facts_of_tokens_hold",
    AlwaysSingle: "check_float_type_of_tokens_is_kept",
    ComputesInHalf: "check_half_precision_tokens_are_widened",
    TurnsTheMask: "check_masked_tokens_leak_nowhere",
    LeaksPadding: "check_masked_tokens_leak_nowhere",
    PassesPadding: "check_masked_tokens_leak_nowhere",
    LengthMatters: "check_full_mask_of_tokens_equals_no_mask",
    CentersBatch: "check_view_of_tokens_equals_view",
    LengthOfBatchMatters: "check_batches_of_tokens_do_not_matter",
    LearnsByBatch: "check_batches_of_tokens_do_not_matter",
    MapsTwice: "check_pooling_after_step_equals_pooled_array",
    OneName: "check_store_keeps_steps_apart",
    NameOfTheTokens: "check_store_keeps_steps_apart",
    FillsUnreadable: "check_unreadable_sample_of_tokens_is_nan",
    SilentOnNaN: "check_bad_token_is_named_by_its_sample",
    ForgetsOnRefusal: "check_other_width_of_tokens_is_refused",
    AnyWidth: "check_other_width_of_tokens_is_refused",
    AnyRank: "check_other_ranks_of_tokens_are_refused",
    NeedsFit: "check_step_on_tokens_needs_no_fit",
    FitMatters: "check_step_on_tokens_needs_no_fit",
    LosesState: "check_copies_of_step_on_tokens_give_the_same",
    HasNames: "check_set_output_on_tokens_is_harmless",
    WritesToTokens: "check_tokens_given_are_not_changed",
    CountsCalls: "check_transform_of_tokens_changes_no_state",
    KeepsTensors: "check_attributes_learned_from_tokens_are_on_the_host",
    DoublesPrefixToo: "check_prefix_tokens_stay_as_they_are",
}


class Shifts(BaseRowMap):
    """A sound row step that learns: vectors less the largest value of each feature."""

    _parameter_constraints: dict = {}

    def _learn(self, X):
        from skpool.preprocessing._base import rows_of

        self.peak_ = np.max([rows.amax(0).numpy() for rows in rows_of(X)], axis=0)

    def _check_ready(self):
        check_is_fitted(self)

    def _map(self, rows):
        return rows - torch.from_numpy(self.peak_).to(rows)

    def get_feature_names_out(self, input_features=None):
        return np.array([f"x{i}" for i in range(self.n_features_in_)], dtype=object)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags


class ScalesSamples(L2Normalizer):
    def _map_tokens(self, tokens, mask):
        tokens = super()._map_tokens(tokens, mask)
        return tokens / tokens.shape[1]


class LearnsFromPadding(Shifts):
    def _learn(self, X):
        self.peak_ = np.asarray(X).reshape(-1, X.shape[-1]).max(axis=0) + 0.0
        if isinstance(X, TokenArray):
            self.peak_ = np.maximum(self.peak_, 5.0)


class LosesTheGrid(L2Normalizer):
    def transform(self, X):
        out = super().transform(X)
        return out.map(lambda x, mask: x, grid=None) if isinstance(out, TokenArray) else out


class ReadsPadding(L2Normalizer):
    def _map_tokens(self, tokens, mask):
        return super()._map_tokens(tokens, None)


ROW_MUTANTS = {
    ScalesSamples: "check_tokens_are_mapped_one_by_one",
    LearnsFromPadding: "check_fit_on_tokens_equals_fit_on_their_vectors",
    LosesTheGrid: "check_places_of_tokens_are_kept",
    ReadsPadding: "check_masked_tokens_leak_nowhere",
}
MUTANTS = TOKEN_MUTANTS | ROW_MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_check_catches_the_fault(mutant):
    checks = {check.__name__: check for _, check in estimator_checks_generator(mutant())}
    with pytest.raises(Exception) as caught:
        checks[MUTANTS[mutant]](mutant())
    assert not isinstance(caught.value, (NameError, AttributeError, pytest.skip.Exception))


def names(estimator):
    return [check.__name__ for _, check in estimator_checks_generator(estimator)]


def test_every_check_has_a_fault_that_it_catches():
    assert set(names(Doubles())) == set(TOKEN_MUTANTS.values())
    of_rows = set(names(Shifts())) - set(names(Doubles()))
    assert {name for name in of_rows if "token" in name} == {
        "check_tokens_are_mapped_one_by_one",
        "check_fit_on_tokens_equals_fit_on_their_vectors",
        "check_places_of_tokens_are_kept",
    }


@pytest.mark.parametrize("step", [Doubles(), Centers()])
def test_step_of_a_third_party_passes(step):
    results = check_estimator(step)
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped == (
        {"check_step_on_tokens_needs_no_fit"} if isinstance(step, Centers) else set()
    )


def test_row_step_of_a_third_party_passes_on_vectors_and_on_tokens():
    assert "failed" not in {r["status"] for r in check_estimator(Shifts())}
    assert len(names(Shifts())) == len(set(names(Shifts())))
    assert {"check_rows_do_not_see_each_other", "check_places_of_tokens_are_kept"} <= set(
        names(Shifts())
    )


class NeedsClassToken(Doubles):
    def _check_parameters(self, tokens):
        if not tokens.n_prefix_tokens:
            raise ValueError("It needs a class token.")


def test_step_that_needs_a_class_token_skips_what_has_none():
    statuses = {r["check_name"]: r["status"] for r in check_estimator(NeedsClassToken())}
    assert {name for name, status in statuses.items() if status == "skipped"} == {
        "check_array_of_tokens_gives_array",
        "check_tensor_of_tokens_gives_tensor",
        "check_map_gives_map",
        "check_ragged_samples_equal_samples_alone",
    }


def test_step_that_refuses_arrays_for_another_reason_fails():
    class Refuses(Doubles):
        def transform(self, X):
            if not isinstance(X, TokenArray):
                raise ValueError("Not today.")
            return super().transform(X)

    results = {r["check_name"]: r["status"] for r in check_estimator(Refuses(), on_fail=None)}
    assert results["check_array_of_tokens_gives_array"] == "failed"
