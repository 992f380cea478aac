"""What is kept of source frames that will be shown again."""

import numpy as np
import torch

from latentsync.runtime.frame_cache import FrameCache

ONE = torch.zeros(10, dtype=torch.uint8)  # 10 bytes


def play(source, room):
    """How often each frame had to be made, and the most bytes that were kept."""
    kept = FrameCache(np.bincount(source), room)
    made, most = [0] * (max(source) + 1), 0
    for index in source:
        value = kept.get(index)
        if value is None:
            value, made[index] = ONE.clone(), made[index] + 1
        kept.shown(index, value)
        most = max(most, sum(v.nbytes for v in kept._kept.values()))
    assert not kept._kept  # nothing is held once it was shown for the last time
    return made, most


def test_a_frame_is_made_once_however_often_it_is_shown():
    assert play([0, 1, 2, 1, 0, 1, 2], room=1000) == ([1, 1, 1], 30)
    assert play([0] * 9, room=10) == ([1], 10)


def test_a_clip_that_plays_once_takes_no_room():
    assert play(range(50), room=1000) == ([1] * 50, 0)


def test_of_a_loop_too_long_to_keep_the_same_part_is_kept_in_every_round():
    made, most = play([*range(10)] * 4, room=65)
    assert most == 60
    assert made == [1] * 6 + [4] * 4


def test_without_room_everything_is_made_each_time():
    assert play([0, 1, 0, 1], room=0) == ([2, 2], 0)
