# SPDX-License-Identifier: BSD-3-Clause
"""Parts of the work in threads: each once, as in the caller's thread, leaving nothing behind."""

import threading
import time

import pytest
import torch

from skpool.utils import side_by_side


@pytest.fixture(params=[1, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_item_is_worked_on_once(n, n_threads):
    seen = []
    side_by_side(lambda part: seen.extend(range(n)[part]), n)
    assert sorted(seen) == list(range(n))


def test_error_in_a_thread_is_raised(n_threads):
    def fail(part):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        side_by_side(fail, 4)


def test_every_part_has_one_thread_of_torch(n_threads):
    seen = []
    side_by_side(lambda part: seen.append(torch.get_num_threads()), 6)
    assert seen == [1] * n_threads


def test_threads_of_torch_are_as_before(n_threads):
    side_by_side(lambda part: None, 6)
    assert torch.get_num_threads() == n_threads
    started = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [n_threads]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradients_are_those_of_the_caller(mode, n_threads):
    seen = []

    def work(part):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with mode():
        expected = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        side_by_side(work, 6)
    assert set(seen) == {expected}


def test_calls_may_be_nested(n_threads):
    seen = []
    outer = threading.Thread(
        target=lambda: side_by_side(
            lambda part: side_by_side(lambda inner: seen.extend(range(4)[inner]), 4), 3
        ),
        daemon=True,
    )
    outer.start()
    outer.join(timeout=30)
    assert not outer.is_alive()
    assert sorted(seen) == sorted([*range(4)] * min(n_threads, 3))


def test_callers_in_two_threads_take_turns(n_threads):
    at_work, most = [], []

    def work(part):
        at_work.append(part)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.remove(part)

    callers = [threading.Thread(target=side_by_side, args=(work, 6)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert max(most) <= n_threads
