"""Which of the kept files go."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.service.expiry import expired, sweep
from latentsync.service.storage import Stored, open_storage

FILES = [Stored("new", 10, 900.0), Stored("old", 20, 100.0), Stored("middle", 30, 500.0)]


def going(**bounds):
    return [entry.key for entry in expired(FILES, now=1000.0, **bounds)]


def test_what_is_too_old_goes():
    assert going() == []
    assert going(max_age_seconds=900) == []
    assert going(max_age_seconds=899) == ["old"]
    assert going(max_age_seconds=0) == ["old", "middle", "new"]


def test_the_oldest_go_until_the_rest_fits():
    assert going(max_bytes=60) == []
    assert going(max_bytes=59) == ["old"]
    assert going(max_bytes=39) == ["old", "middle"]
    assert going(max_bytes=0) == ["old", "middle", "new"]


def test_what_is_in_use_stays():
    assert going(max_age_seconds=0, in_use=lambda key: key == "old") == ["middle", "new"]
    assert going(max_bytes=59, in_use=lambda key: key == "old") == ["middle"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.builds(Stored, st.text(), st.integers(0, 99), st.floats(0, 1000)), max_size=20),
    st.integers(0, 500),
    st.floats(0, 1000),
)
def test_what_stays_fits_and_is_no_older_than_what_goes(entries, max_bytes, max_age):
    gone = expired(entries, now=1000.0, max_age_seconds=max_age, max_bytes=max_bytes)
    stays = list(entries)
    for entry in gone:
        stays.remove(entry)
    assert sum(entry.size for entry in stays) <= max_bytes
    assert all(1000.0 - entry.modified <= max_age for entry in stays)
    if gone and stays:
        assert max(e.modified for e in gone) <= min(e.modified for e in stays)


def test_a_sweep_deletes(tmp_path):
    storage = open_storage(tmp_path)
    for entry in FILES:
        (tmp_path / entry.key).write_bytes(bytes(entry.size))
        os.utime(tmp_path / entry.key, (entry.modified, entry.modified))
    gone = sweep(storage, max_age_seconds=600, max_bytes=35, now=1000.0)
    assert gone == [Stored("old", 20, 100.0), Stored("middle", 30, 500.0)]
    assert [entry.key for entry in storage.entries()] == ["new"]
    assert sweep(storage, max_age_seconds=600)[0].key == "new"  # as the clock has it
