"""Stages of a run side by side: each in a thread of its own, joined by bounded queues."""

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import ContextVar, copy_context
from queue import Empty, Full, Queue
from typing import TypeVar

__all__ = ["consumer_gone", "prefetch"]

LOOK_EVERY = 0.05  # seconds, between two looks whether nobody wants any more

Item = TypeVar("Item")

_abandoned: ContextVar[Callable[[], bool]] = ContextVar("_abandoned", default=lambda: False)


def consumer_gone() -> bool:
    """True once the consumer of this thread's output is gone.

    That holds for the stages before the one that ended. Those after it go on: they have its items
    to work on, and then its error to raise.
    """
    return _abandoned.get()()


def prefetch(items: Generator[Item, None, None], size: int = 1) -> Generator[Item, None, None]:
    """Iterate over `items` in a background thread, at most `size` of them buffered.

    An error in the thread is raised here, after the items before it. When this generator is closed,
    or something is thrown into it, `consumer_gone` is true in the thread; it stops at its next
    item and closes `items`.
    """
    queue: Queue[Item | _End] = Queue(size)
    stop = threading.Event()
    after = _abandoned.get()  # the thread that takes the items may itself be a stage

    def put(item: "Item | _End") -> None:
        waiting = True
        while waiting and not stop.is_set():
            with suppress(Full):
                queue.put(item, timeout=LOOK_EVERY)
                waiting = False

    def work() -> None:
        _abandoned.set(lambda: stop.is_set() or after())
        end = _End()
        try:
            for item in items:
                put(item)
                del item  # or it would be held while the next one is made
                if stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            end = _End(error)
        finally:
            items.close()
        put(end)

    thread = threading.Thread(target=copy_context().run, args=[work], daemon=True)
    thread.start()
    try:
        while not isinstance(item := _taken(queue), _End):
            yield item
            del item
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()
    if item.error is not None:
        raise item.error


class _End:
    """No more items; because of an error, perhaps."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _taken(queue: "Queue[Item | _End]") -> "Item | _End":
    while True:
        with suppress(Empty):
            return queue.get(timeout=LOOK_EVERY)  # so that Ctrl-C is heard on Windows, too
