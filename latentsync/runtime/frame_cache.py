"""Cache of tensors by source frame."""

from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from latentsync.types import IntArray

__all__ = ["FrameCache"]

Value = TypeVar("Value", bound=Tensor)


class FrameCache(Generic[Value]):
    """Bounded cache of per-source-frame tensors; each entry is dropped after its last known use.

    When it is full, nothing more is added, so that in a clip that bounces or loops the same part is
    cached in every round.

    Args:
        uses: (n,) number of uses of each source frame.
        room: bytes that it may hold.
    """

    def __init__(self, uses: IntArray, room: int) -> None:
        self._left = np.array(uses, dtype=np.int64)
        self._room = room
        self._kept: dict[int, Value] = {}

    def get(self, index: int) -> Value | None:
        return self._kept.get(index)

    def shown(self, index: int, value: Value) -> None:
        """Count one use of a frame; keep `value` if it will be used again and fits."""
        self._left[index] -= 1
        size = value.nbytes
        if index in self._kept:
            if self._left[index] <= 0:
                del self._kept[index]
                self._room += size
        elif self._left[index] > 0 and size <= self._room:
            self._kept[index] = value
            self._room -= size
