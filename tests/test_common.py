# SPDX-License-Identifier: BSD-3-Clause
"""Every public estimator through the same suites: scikit-learn's, ours, and the package's habits.

A new estimator is put to all of this by one line in ``_instances.py``, and a test fails while it
has none.
"""

import inspect
import pickle

import joblib
import numpy as np
import pytest
from _instances import INSTANCES, expected_failures, name_of, takes_vectors
from joblib.externals.loky import get_reusable_executor
from numpydoc.validate import validate
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks as sklearn_checks
from text_nets import TEXTS

from skpool.pooling import RegionalGeM
from skpool.utils.discovery import all_estimators, all_public_objects
from skpool.utils.estimator_checks import parametrize_with_checks

ALL = [instance for instances in INSTANCES.values() for instance in instances]
CLASSES = [cls for _, cls in all_estimators()]
PUBLIC = dict(all_public_objects())

# What numpydoc is asked: that there is a docstring, with a summary in one sentence, sections in
# their order, and exactly the parameters that the signature has.
EVERYWHERE = {"GL03", "GL05", "GL06", "GL07", "GL08", "GL10", "SS01", "SS02", "SS03"}
EVERYWHERE |= {"PR02", "PR03", "PR10"}
# And of estimators and their methods: what goes in and what comes out.
OF_ESTIMATORS = {"PR01", "PR04", "RT01", "SA04", "SS06"}


def data_for(estimator: BaseEstimator) -> np.ndarray:
    rng = np.random.default_rng(0)
    tags = get_tags(estimator)
    if isinstance(estimator, RegionalGeM) or getattr(estimator, "_needs_grid", False):
        return rng.normal(size=(8, 2, 3, 12))
    if tags.input_tags.three_d_array:
        return rng.normal(size=(8, 6, 12))
    if tags.input_tags.string:
        return np.array(TEXTS)
    if tags.input_tags.two_d_array:
        return rng.normal(size=(40, 12)) + 3 * np.eye(12)[LABELS]
    return rng.integers(0, 256, size=(8, 16, 16, 3), dtype=np.uint8)


LABELS = np.arange(40) % 3


def fitted(estimator: BaseEstimator) -> BaseEstimator:
    estimator, X = clone(estimator), data_for(estimator)
    return estimator.fit(X, LABELS[: len(X)])


def output(estimator: BaseEstimator, X: np.ndarray) -> np.ndarray:
    names = ("transform", "predict_proba", "predict")
    return np.asarray(next(getattr(estimator, n) for n in names if hasattr(estimator, n))(X))


def test_every_public_estimator_has_an_instance():
    assert {cls.__name__ for cls in CLASSES} == {cls.__name__ for cls in INSTANCES}


@sklearn_checks(
    [estimator for estimator in ALL if takes_vectors(estimator)],
    expected_failed_checks=expected_failures,
    xfail_strict=True,
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@parametrize_with_checks(ALL, expected_failed_checks=expected_failures)
def test_skpool_check_passes(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_skops_round_trip_gives_the_same(estimator):
    io = pytest.importorskip("skops.io")
    if getattr(getattr(estimator, "backbone", None), "spec", "").startswith("module:"):
        pytest.skip("the backbone is a module without a name, which skops cannot load")
    model, X = fitted(estimator), data_for(estimator)
    output(model, X)
    stored = io.dumps(model)
    unknown = io.get_untrusted_types(data=stored)
    # Arrays of SciPy are plain data, of which skops knows the older kind only.
    known = ("skpool.", "scipy.sparse.")
    assert [name for name in unknown if not name.startswith(known)] == []
    back = io.loads(stored, trusted=unknown)
    np.testing.assert_array_equal(output(back, X), output(model, X))


def output_or_error(estimator: BaseEstimator, X: np.ndarray) -> np.ndarray | Exception:
    try:
        return output(estimator, X)
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def outputs_of_workers():
    """What two worker processes make of every estimator, fitted here and pickled to them."""
    jobs = [(fitted(estimator), data_for(estimator)) for estimator in ALL]
    try:
        results = joblib.Parallel(n_jobs=2, backend="loky")(
            joblib.delayed(output_or_error)(model, X) for model, X in jobs
        )
    finally:
        get_reusable_executor().shutdown(wait=True)
    return list(zip(jobs, results, strict=True))


@pytest.mark.parametrize("number", range(len(ALL)), ids=lambda i: name_of(ALL[i]))
def test_worker_process_gives_the_same(number, outputs_of_workers):
    (model, X), result = outputs_of_workers[number]
    if isinstance(result, Exception):
        raise result
    # Another process may have another number of threads, hence another order of sums.
    np.testing.assert_allclose(result, output(model, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_fitted_pickle_is_small(estimator):
    model = fitted(estimator)
    output(model, data_for(estimator))
    assert len(pickle.dumps(model)) < 100_000


@pytest.mark.parametrize("cls", CLASSES)
def test_every_parameter_is_constrained(cls):
    assert set(cls._parameter_constraints) == set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("cls", CLASSES)
def test_only_the_first_parameter_is_positional(cls):
    parameters = list(inspect.signature(cls).parameters.values())
    assert {parameter.kind.name for parameter in parameters[1:]} <= {"KEYWORD_ONLY", "VAR_KEYWORD"}


@pytest.mark.parametrize("estimator", ALL, ids=name_of)
def test_fitted_attributes_are_documented(estimator):
    model = fitted(estimator)
    output(model, data_for(estimator))
    documented = inspect.getdoc(type(model))
    names = {
        name
        for name in dir(model)
        if name.endswith("_") and not name.startswith("_") and hasattr(model, name)
    }
    # scikit-learn sets it where the first X had column names.
    assert {name for name in names if f"{name} : " not in documented} == set()


def methods_of(name: str, cls: type) -> list[str]:
    """The public methods and properties that a class of the package defines, by full name."""
    found = []
    for attribute, value in inspect.getmembers(cls):
        function = value.fget if isinstance(value, property) else value
        ours = (getattr(function, "__module__", None) or "").startswith("skpool")
        if ours and callable(function) and not attribute.startswith("_"):
            found.append(f"{name}.{attribute}")
    return found


DOCUMENTED = {
    full: inspect.isclass(value) and issubclass(value, BaseEstimator)
    for name, value in PUBLIC.items()
    if inspect.isclass(value) or inspect.isfunction(value)
    for full in [name, *(methods_of(name, value) if inspect.isclass(value) else [])]
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_is_complete(name):
    codes = EVERYWHERE | OF_ESTIMATORS if DOCUMENTED[name] else EVERYWHERE
    errors = [f"{code}: {text}" for code, text in validate(name)["errors"] if code in codes]
    assert errors == []


@pytest.mark.parametrize("cls", CLASSES)
def test_class_docstring_has_an_example_and_says_what_it_costs(cls):
    doc = inspect.getdoc(cls)
    assert ">>>" in doc
    assert "Notes\n-----" in doc
