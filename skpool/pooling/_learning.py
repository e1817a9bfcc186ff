# SPDX-License-Identifier: BSD-3-Clause
"""What poolings learn from: a sample of tokens, or the moments of all of them.

Both read a token array once, batch by batch, so tokens of a network are never held together; both
depend on the samples alone, not on how they are cut into batches or which of them a store has.
"""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.utils import check_random_state

from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import widened

__all__ = ["real_tokens", "sample_tokens", "token_moments"]


def real_tokens(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The tokens that are not masked, (m, d), sample after sample; half precision as float32."""
    return widened(tokens.flatten(0, 1) if mask is None else tokens[mask])


def _known(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens without those of a network that are NaN, as an unreadable view's."""
    known = torch.isfinite(tokens).all(dim=1)
    return tokens if bool(known.all()) else tokens[known]


def _sampled(tokens: TokenArray, chosen: np.ndarray, batch_size: int | None) -> Iterator[tuple]:
    """Sample by sample: its number and those of its real tokens that were chosen."""
    n_tokens = tokens.shape[1]
    for positions, values, mask in tokens.iter_batches(batch_size):
        for i, position in enumerate(positions.tolist()):
            first, last = np.searchsorted(chosen, [position * n_tokens, (position + 1) * n_tokens])
            places = chosen[first:last] - position * n_tokens
            # Ragged tokens of a network are as many as the longest of the batch.
            places = torch.from_numpy(places[places < values.shape[1]]).to(values.device)
            if mask is not None:
                places = places[mask[i, places]]
            yield position, widened(values[i, places])


def sample_tokens(
    tokens: TokenArray, *, max_tokens: int, random_state: object, batch_size: int | None = None
) -> torch.Tensor:
    """Some tokens of all samples, drawn without replacement.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    max_tokens : int
        Tokens at most; all where there are fewer.
    random_state : int, RandomState or None
    batch_size : int, default=None
        Rows of an array that are read at a time.

    Returns
    -------
    sample : tensor of shape (n, n_features)
        In the order of the samples, where the tokens lie. Masked tokens are left out, so there
        may be fewer than `max_tokens` of ragged samples.

    Raises
    ------
    ValueError
        No sample has a real token.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling._learning import sample_tokens
    >>> from skpool.stores import TokenArray
    >>> tokens = TokenArray.from_array(np.zeros((5, 7, 2)))
    >>> sample_tokens(tokens, max_tokens=10, random_state=0).shape
    torch.Size([10, 2])
    """
    n = len(tokens) * tokens.shape[1]
    if n <= max_tokens:
        chosen = np.arange(n)
    else:
        rng = check_random_state(random_state)
        # A permutation of all places would take as much memory as the places of a large set.
        generator = np.random.default_rng(rng.randint(np.iinfo(np.int32).max))
        chosen = np.sort(generator.choice(n, size=max_tokens, replace=False, shuffle=False))
    parts = dict(_sampled(tokens, chosen, batch_size))
    sample = [parts[position] for position in sorted(parts)]
    found = _known(torch.cat(sample)) if sample else torch.empty(0, tokens.shape[2])
    if not len(found):
        raise ValueError("X has no real token to learn from; give samples that have some.")
    return found


def token_moments(tokens: TokenArray, *, batch_size: int | None = None) -> RunningMoments:
    """Count, mean and scatter of all real tokens, in float64.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    batch_size : int, default=None
        Rows of an array that are read at a time.

    Returns
    -------
    moments : RunningMoments

    Raises
    ------
    ValueError
        No sample has a real token.
    """
    moments = RunningMoments(product_dtype="float64")
    for _, values, mask in tokens.iter_batches(batch_size):
        found = _known(real_tokens(values, mask))
        if len(found):
            moments.update(found)
    if not moments.n_samples:
        raise ValueError("X has no real token to learn from; give samples that have some.")
    return moments
