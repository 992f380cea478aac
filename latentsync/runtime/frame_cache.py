"""What was made of a source frame, kept while it will be wanted again and there is room."""

from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from latentsync.types import IntArray

__all__ = ["FrameCache"]

Value = TypeVar("Value", bound=Tensor)


class FrameCache(Generic[Value]):
    """Tensors by the number of their source frame, each until it has been shown for the last time.

    When the room is full nothing more is kept: of a clip that plays to and fro or again and again,
    the same part is known in every round then.

    Args:
        times: (n,) how often each source frame will be shown.
        room: bytes.
    """

    def __init__(self, times: IntArray, room: int) -> None:
        self._left = np.array(times, dtype=np.int64)
        self._room = room
        self._kept: dict[int, Value] = {}

    def get(self, index: int) -> Value | None:
        return self._kept.get(index)

    def shown(self, index: int, value: Value) -> None:
        """One showing of a frame, of which this was made."""
        self._left[index] -= 1
        size = value.nbytes
        if index in self._kept:
            if self._left[index] <= 0:
                del self._kept[index]
                self._room += size
        elif self._left[index] > 0 and size <= self._room:
            self._kept[index] = value
            self._room -= size
