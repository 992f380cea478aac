"""Preparation of a training set from a folder of raw clips: `prepare`.

stretch.py    the types
steps.py      the steps that choose stretches of a source
clip.py       a stretch written as a clip
plan.py       the steps and nets that the settings ask for
work.py       one file through all steps
workers.py    worker processes, a file at a time each
journal.py    records of finished files, from which a run resumes
runner.py     a whole folder
summary.py    a page about the result
"""

from latentsync.training.preparation.runner import FileCounts, prepare
from latentsync.training.settings import PreparationSettings

__all__ = ["FileCounts", "PreparationSettings", "prepare"]
