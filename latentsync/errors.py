"""Every error this library raises on purpose.

    LatentSyncError                   base; the command line exits with 1
    |-- InputError                    what was given can't be used; the command line exits with 2
    |   |-- MediaError                not readable as media, or nothing in it
    |   |-- NoFaceFound               a readable clip in which the detector accepts no face
    |   |-- OptionError               an option out of its range (also a ValueError)
    |   `-- OutputError               the output path can't be written
    |-- WeightsError                  base of the next two
    |   |-- WeightsMissing            a file is not there
    |   `-- WeightsMismatch           a file is there, but holds another model
    |-- TrainingError                 training can't go on: a loss is not finite
    |-- BackendUnavailable            a device or a back end that was asked for can't be used
    `-- Cancelled                     the caller's `cancel()` said so; nothing was left behind

A message has three parts: what we got, what we wanted, what to do. It names options by
`option_name`, and marks by `with_option` what concerns only those who have an option. The library,
the command line and the task API then tell it in their own words, by `LatentSyncError.told`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = [
    "HOST",
    "Asker",
    "BackendUnavailable",
    "Cancelled",
    "InputError",
    "LatentSyncError",
    "MediaError",
    "NoFaceFound",
    "OptionError",
    "OutputError",
    "TrainingError",
    "WeightsError",
    "WeightsMismatch",
    "WeightsMissing",
    "about",
    "in_words_of",
    "option_name",
    "with_option",
]

HOST = "host"  # the "option" of whoever sits at the machine: its disk, its command line
_OPEN, _THEN, _CLOSE = "\ue000", "\ue001", "\ue002"  # of Unicode's private use area
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_THEN}{_CLOSE}]*)({_THEN}([^{_OPEN}{_CLOSE}]*))?{_CLOSE}")
_AT_THE_HOST = "this can't be done here at the moment; the log of this service says why"


def option_name(name: str) -> str:
    """The name of an option of `Options` or `LipSync.load`, in a message."""
    return f"{_OPEN}{name}{_CLOSE}"


def with_option(name: str, clause: str) -> str:
    """A clause of a message that only those are told who have that option."""
    return f"{_OPEN}{name}{_THEN}{clause}{_CLOSE}"


@dataclass(frozen=True)
class Asker:
    """What those who are told an error call things."""

    option: Callable[[str], str | None]  # their name of an option; None: they don't have it
    inputs: Mapping[str, str] = field(default_factory=dict)  # their names of paths
    at_host: bool = False  # whether they can mend the machine itself

    def words(self, message: str) -> str:
        """A message without its marks."""
        while (told := _MARKED.sub(self._unmarked, message)) != message:
            message = told  # from the inner marks outwards
        for path in sorted(self.inputs, key=len, reverse=True):
            message = message.replace(repr(path), self.inputs[path])
            if "/" in path.strip("/"):  # "" and "a" stand in words, too
                message = message.replace(path, self.inputs[path])
        return message

    def _unmarked(self, marked: re.Match[str]) -> str:
        own = self.option(marked[1])
        if marked[2] is None:
            return own or marked[1]
        return "" if own is None else str(marked[3])


_LIBRARY = Asker(option=lambda name: name, at_host=True)


class LatentSyncError(Exception):
    """Base of all errors below; `str(error)` is one line for callers of the library."""

    def __str__(self) -> str:
        return _LIBRARY.words(super().__str__())

    def told(self, asker: Asker) -> str:
        """Tell the error in one line, in the asker's words; what they can't mend is for the log."""
        if isinstance(self, InputError | Cancelled) or asker.at_host:
            return asker.words(super().__str__())
        return _AT_THE_HOST


class InputError(LatentSyncError):
    """The caller's input can't be used as it is."""


class MediaError(InputError):
    """A file is not readable as the media it should be."""


class NoFaceFound(InputError):
    """No frame of the clip has a face that the detector accepts."""


class OptionError(InputError, ValueError):
    """An option is out of its range."""


class OutputError(InputError):
    """The output path can't be written."""


class WeightsError(LatentSyncError):
    """A model's weights can't be used."""


class WeightsMissing(WeightsError):
    """A weight file is not there."""


class WeightsMismatch(WeightsError):
    """A weight file holds another model than the requested one."""


class TrainingError(LatentSyncError):
    """Training can't go on."""


class BackendUnavailable(LatentSyncError):
    """A requested device or back end can't be used here."""


class Cancelled(LatentSyncError):
    """The run was cancelled by its caller."""


@contextmanager
def about(name: str) -> Iterator[None]:
    """Let errors of bad input say first which input is meant."""
    try:
        yield
    except InputError as error:
        error.args = (f"{name}: {error.args[0]}",)
        raise


@contextmanager
def in_words_of(asker: Asker) -> Iterator[None]:
    """Let errors of bad input be in the words of whoever asked."""
    try:
        yield
    except InputError as error:
        error.args = (error.told(asker),)
        raise
