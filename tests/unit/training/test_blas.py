"""The limit on threads holds while anybody holds it, and is taken back."""

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from training.blas import one_thread


def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_is_used_while_it_is_held_and_all_of_them_afterwards():
    before = threads()
    with one_thread():
        assert threads() == {1}
        assert torch.get_num_threads() == 1
    assert threads() == before
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_last_one_to_go_takes_the_limit_back():
    before = threads()
    first, second = one_thread(), one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads() == {1}
    second.__exit__(None, None, None)
    assert threads() == before


@pytest.mark.usefixtures("two_threads")
def test_the_limit_is_taken_back_after_an_error():
    before = threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert threads() == before
