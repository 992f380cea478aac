import ctypes
import os
import signal
import threading
import time
from contextvars import ContextVar

import pytest

from latentsync.errors import Cancelled
from latentsync.runtime.progress import RunContext, interruptible


class Thrown(BaseException):
    """As Cog's cancellation: no Exception."""


def throw_into(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Thrown))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Thrown])
@pytest.mark.usefixtures("obeys_sigint")
def test_what_is_thrown_into_the_caller_stops_the_work_and_never_hits_it(kind):
    ended = []
    caller = threading.get_ident()

    def work(cancelled):
        assert threading.get_ident() != caller
        time.sleep(0.2)
        if kind is Thrown:
            throw_into(caller)
        else:
            os.kill(os.getpid(), signal.SIGINT)
        while not cancelled():
            time.sleep(0.01)
        time.sleep(0.2)  # puts its files away
        ended.append(True)
        raise Cancelled("cancelled")

    with pytest.raises(kind):
        interruptible(work)
    assert ended == [True]


def test_an_answer_and_an_error_come_back():
    name: ContextVar[str] = ContextVar("name")
    name.set("prediction 7")  # Cog tells by it whose log line it is
    assert interruptible(lambda cancelled: (cancelled(), name.get())) == (False, "prediction 7")
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda _cancelled: 1 / 0)


def test_check_says_where_it_was_cancelled():
    answers = iter([False, False, True])
    context = RunContext(cancelled=lambda: next(answers))
    context.step("detect", 3, 9)
    context.check()
    with pytest.raises(Cancelled, match="frame 3 of stage 'detect'"):
        context.check()
