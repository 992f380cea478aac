"""Runs the stages of a pipeline in parallel: threads joined by bounded queues."""

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TypeVar

__all__ = ["POLL_SECONDS", "consumer_gone", "prefetch"]

POLL_SECONDS = 0.05  # of what can't wake a waiting thread: a consumer that is gone, or Ctrl-C

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    """The end of the items, and the error that caused it, if any."""

    error: BaseException | None = None


_abandoned: ContextVar[Callable[[], bool]] = ContextVar("_abandoned", default=lambda: False)


def consumer_gone() -> bool:
    """True once the consumer of this thread's output is gone.

    This holds for the stages before the one that ended. Those after it continue with its items, and
    then raise its error.
    """
    return _abandoned.get()()


def prefetch(items: Generator[Item, None, None], size: int = 1) -> Generator[Item, None, None]:
    """Iterate over `items` in a background thread, at most `size` of them buffered.

    An error in the thread is raised here, after the items before it. If this generator is closed or
    an error is thrown into it, `consumer_gone` becomes true in the thread, which stops at its next
    item and closes `items`.
    """
    queue: Queue[Item | _End] = Queue(size)
    stop = threading.Event()
    after = _abandoned.get()  # the consumer's thread may itself be a stage

    def put(item: "Item | _End") -> None:
        waiting = True
        while waiting and not stop.is_set():
            with suppress(Full):
                queue.put(item, timeout=POLL_SECONDS)
                waiting = False

    def take() -> "Item | _End":
        while True:
            with suppress(Empty):
                return queue.get(timeout=POLL_SECONDS)  # so that Windows handles Ctrl-C, too

    def work() -> None:
        _abandoned.set(lambda: stop.is_set() or after())
        end = _End()
        try:
            for item in items:
                put(item)
                del item  # else it is held while the next one is made
                if stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            end = _End(error)
        finally:
            items.close()
        put(end)

    thread = threading.Thread(target=copy_context().run, args=[work], daemon=True)
    thread.start()
    try:
        while not isinstance(item := take(), _End):
            yield item
            del item
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()
    if item.error is not None:
        raise item.error
