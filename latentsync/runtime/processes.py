"""Worker processes that end with the process that started them."""

import multiprocessing
import threading
from collections.abc import Callable

__all__ = ["when_parent_ends"]


def when_parent_ends(call: Callable[[], object]) -> None:
    """Call `call`, from another thread, when the parent process has ended, for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        call()

    threading.Thread(target=wait, daemon=True).start()
