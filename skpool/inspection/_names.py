# SPDX-License-Identifier: BSD-3-Clause
"""Short names of the values in a parameter grid, for the labels of a picture.

An estimator is called by its class and by what was changed of its defaults: `Whitening(32)` is
"Whitening, n_components=32". Two different values never share a name.
"""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import FeatureUnion, Pipeline

__all__ = ["key_of", "names_of_values"]

# What a class is, which the place of its name in the picture says already.
_ROLES = ("Pooling", "Classifier")
# These stand for many kinds, of which their first parameter chooses one.
_CHOSEN_BY_FIRST = {"Pooling", "TokenPooling"}
# How something is computed, not what; named only where nothing else tells two values apart.
_BOOKKEEPING = {"batch_size", "copy", "device", "max_iter", "n_jobs", "random_state", "verbose"}
_LONGEST_SEQUENCE = 4


def names_of_values(values: Sequence[dict], given: Mapping[str, object]) -> list[str]:
    """Name what each candidate of a search chose.

    Parameters
    ----------
    values : sequence of dict
        For each candidate the values of the parameters of interest, by parameter name; a
        parameter that the candidate did not set is left out.
    given : dict of {str: object}
        Names of values, for candidates that chose one such value.

    Returns
    -------
    names : list of str
        Equal for equal choices, different for different ones.
    """
    keys = [tuple((name, key_of(value)) for name, value in chosen.items()) for chosen in values]
    choices = dict(zip(keys, values, strict=True))
    named = {key_of(value): name for name, value in given.items()}
    names = {key: _name_of_choice(chosen, _BOOKKEEPING) for key, chosen in choices.items()}
    for key in _sharing_a_name(names):
        names[key] = _name_of_choice(choices[key], frozenset())
    names |= {key: named[key[0][1]] for key in names if len(key) == 1 and key[0][1] in named}
    seen: Counter[str] = Counter()
    for key in _sharing_a_name(names):
        seen[names[key]] += 1
        names[key] = f"{names[key]} ({seen[names[key]]})"
    return [names[key] for key in keys]


def _sharing_a_name(names: dict[tuple, str]) -> list[tuple]:
    counts = Counter(names.values())
    return [key for key, name in names.items() if counts[name] > 1]


def key_of(value: object) -> object:
    """Something that is equal for two values only if they are configured alike."""
    if _is_nothing(value):
        return None
    if _is_estimator(value):
        changed = _changed_parameters(value).items()
        return type(value), tuple((name, key_of(part)) for name, part in changed)
    if isinstance(value, (list, tuple)):
        return type(value), tuple(key_of(part) for part in value)
    if isinstance(value, np.ndarray):
        return "array", value.shape, value.tobytes()
    return repr(value)


def _is_nothing(value: object) -> bool:
    """Whether a step of a pipeline is left out."""
    return value is None or (isinstance(value, str) and value == "passthrough")


def _is_estimator(value: object) -> bool:
    return isinstance(value, BaseEstimator) and not isinstance(value, type)


def _changed_parameters(estimator: BaseEstimator) -> dict[str, object]:
    """The parameters that are not at their defaults, in the order of the signature."""
    values = estimator.get_params(deep=False)
    signature = inspect.signature(type(estimator)).parameters
    # Those that came as **params have no default.
    defaults = {name: repr(parameter.default) for name, parameter in signature.items()}
    names = [*(name for name in signature if name in values), *sorted(set(values) - set(signature))]
    return {name: values[name] for name in names if repr(values[name]) != defaults.get(name)}


def _name_of_choice(chosen: dict, hidden: set | frozenset) -> str:
    names = [_name_of_parameter(name, value, hidden) for name, value in chosen.items()]
    return ", ".join(names) if names else "not set"


def _name_of_parameter(parameter: str, value: object, hidden: set | frozenset) -> str:
    """The name of a step, or of one of its parameters, whose value may need to be explained."""
    *of_a_step, leaf = parameter.split("__")
    if not of_a_step or _speaks_for_itself(value):
        return _name(value, hidden)
    return f"{leaf}={_value(value, hidden)}"


def _speaks_for_itself(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(part, str) for part in value)
    return isinstance(value, str) or _is_estimator(value)


def _name(value: object, hidden: set | frozenset) -> str:
    if _is_nothing(value):
        return "none"
    if isinstance(value, Pipeline):
        return " + ".join(_name(step, hidden) for _, step in value.steps)
    if isinstance(value, FeatureUnion):
        return " & ".join(_name(step, hidden) for _, step in value.transformer_list)
    if _is_estimator(value):
        return _name_of_estimator(value, hidden)
    if _speaks_for_itself(value) and not isinstance(value, str):
        return " + ".join(value)
    return _value(value, hidden)


def _name_of_estimator(estimator: BaseEstimator, hidden: set | frozenset) -> str:
    kind = type(estimator).__name__
    changed = {k: v for k, v in _changed_parameters(estimator).items() if k not in hidden}
    head = kind
    for role in _ROLES:
        head = head.removesuffix(role) or head
    if kind in _CHOSEN_BY_FIRST:
        first = next(iter(inspect.signature(type(estimator)).parameters))
        head = _name(getattr(estimator, first), hidden)
        changed.pop(first, None)
    return ", ".join([head, *(f"{name}={_value(v, hidden)}" for name, v in changed.items())])


def _value(value: object, hidden: set | frozenset) -> str:
    """A value after an equals sign."""
    if isinstance(value, (bool, np.bool_)) or value is None:
        return str(value)
    if isinstance(value, Real):
        return f"{float(value):g}"
    if _is_estimator(value):
        return _name(value, hidden)
    if isinstance(value, (list, tuple, np.ndarray)):
        parts = [_value(part, hidden) for part in value]
        more = ["..."] if len(parts) > _LONGEST_SEQUENCE else []
        return f"({', '.join(parts[: _LONGEST_SEQUENCE - len(more)] + more)})"
    return getattr(value, "__name__", None) or str(value)
