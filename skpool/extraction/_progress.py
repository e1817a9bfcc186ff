# SPDX-License-Identifier: BSD-3-Clause
"""Progress of a pass, told to scikit-learn's callbacks.

Tokens are computed when somebody uses them, long after `transform` has returned, so every pass is
a task tree of its own: its root is the pass, with one subtask per batch.
"""

import copy
from collections.abc import Iterator

from sklearn.base import BaseEstimator
from sklearn.callback._callback_support import callback_management_context

from skpool.extraction._spaces import Rows

__all__ = ["Progress"]


class Progress:
    """The callbacks that an extractor had when it was asked for tokens.

    Parameters
    ----------
    estimator : estimator with callbacks, or None
    """

    def __init__(self, estimator: BaseEstimator | None):
        self._teller = None
        if getattr(estimator, "_skl_callbacks", None):
            # The estimator may be in the hands of others when the pass runs, and the callbacks
            # that a search lent to it taken back.
            self._teller = copy.copy(estimator)
            self._teller.__dict__.pop("_parent_callback_ctx", None)
            self._teller.set_callbacks(*estimator._skl_callbacks)

    def of(self, batches: Iterator[Rows], n_batches: int) -> Iterator[Rows]:
        """Hand batches on, telling of each."""
        if self._teller is None:
            yield from batches
            return
        teller, context, done = self._teller, None, 0
        with callback_management_context(teller):
            for batch in batches:
                if context is None and len(batch.rows):
                    # Not before there is something to compute: most passes find all rows stored.
                    context = teller._init_callback_context("extract", max_subtasks=n_batches)
                    context.call_on_fit_task_begin(estimator=teller)
                if len(batch.rows) and done < n_batches:
                    step = context.subcontext("batch")
                    step.call_on_fit_task_begin(estimator=teller)
                    step.call_on_fit_task_end(estimator=teller)
                    done += 1
                yield batch
            if context is not None:
                context.call_on_fit_task_end(estimator=teller)
