"""Steps of several threads in one call, and pieces of prompts between them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from studio.backend.chat.joint_steps import JointSteps
from tests.builders.waiting import until


class Model:
    """Doubles numbers; a call ends when the test lets it."""

    def __init__(self, most: int = 8) -> None:
        self.calls: list[list[int]] = []
        self.free = threading.Semaphore(0)
        self.joint = JointSteps(self.together, most)

    def together(self, numbers):
        self.calls.append(list(numbers))
        assert self.free.acquire(timeout=30)
        if -1 in numbers:
            raise ValueError("not a number to double")
        return torch.tensor([[2.0 * number] for number in numbers])

    def step(self, number):
        return float(self.joint.step(number, number))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_calls_during_a_step_share_the_next_one(pool):
    model = Model()
    first = pool.submit(model.step, 1)
    until(lambda: model.calls == [[1]])
    others = [pool.submit(model.step, number) for number in (2, 3)]
    until(lambda: len(model.joint._calls) == 2)
    model.free.release(2)
    assert first.result() == 2.0 and [other.result() for other in others] == [4.0, 6.0]
    assert sorted(model.calls[1]) == [2, 3]


def test_a_step_takes_no_more_than_it_can(pool):
    model = Model(most=2)
    first = pool.submit(model.step, 0)
    until(lambda: model.calls == [[0]])
    others = [pool.submit(model.step, number) for number in (1, 2, 3)]
    until(lambda: len(model.joint._calls) == 3)
    model.free.release(3)
    assert first.result() == 0.0 and [other.result() for other in others] == [2.0, 4.0, 6.0]
    assert [len(calls) for calls in model.calls] == [1, 2, 1]


def test_those_of_the_step_before_are_waited_for_but_not_for_ever(pool):
    model = Model()
    model.joint._expected, model.joint._until = {1, 2}, time.perf_counter() + 60
    first = pool.submit(model.step, 1)
    until(lambda: len(model.joint._calls) == 1)
    assert model.calls == []
    second = pool.submit(model.step, 2)
    model.free.release(2)
    assert (first.result(), second.result()) == (2.0, 4.0) and sorted(model.calls[0]) == [1, 2]
    assert pool.submit(model.step, 1).result() == 2.0, "owner 2 has gone"


def test_pieces_and_steps_take_turns(pool):
    model, order, read = Model(), [], threading.Semaphore(0)

    def piece(name):
        with model.joint.alone():
            order.append(name)
            assert read.acquire(timeout=30)

    pieces = [pool.submit(piece, "first piece")]
    until(lambda: order == ["first piece"])
    step = pool.submit(lambda: (model.step(1), order.append("step")))
    until(lambda: len(model.joint._calls) == 1)
    pieces.append(pool.submit(piece, "second piece"))
    until(lambda: len(model.joint._pieces) == 1)
    assert model.calls == []
    read.release()
    until(lambda: model.calls == [[1]])
    assert order == ["first piece"]
    model.free.release()
    read.release()
    for done in (step, *pieces):
        done.result(timeout=30)
    assert set(order[1:]) == {"step", "second piece"}


def test_an_error_reaches_everyone_in_the_step_and_later_steps_work(pool):
    model = Model()
    model.joint._expected, model.joint._until = {1, -1}, time.perf_counter() + 60
    failing = [pool.submit(model.step, number) for number in (1, -1)]
    model.free.release(2)
    for one in failing:
        with pytest.raises(ValueError, match="not a number"):
            one.result(timeout=30)
    assert model.step(3) == 6.0
