"""Clips to train on, chosen from a folder of raw ones: `prepare`.

steps.py      what a clip must be, one step after the other
clip.py       a stretch of a source as a clip
settings.py   all choices; the steps and nets that follow from them
work.py       what becomes of one file
workers.py    files side by side, each in a process of its own
journal.py    what is known of each file, for a run that goes on
runner.py     all of a folder
summary.py    a page that shows what became of it
"""

from latentsync.training.preparation.runner import FileCounts, prepare
from latentsync.training.preparation.settings import PreparationSettings

__all__ = ["FileCounts", "PreparationSettings", "prepare"]
