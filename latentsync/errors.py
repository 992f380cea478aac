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

A message has three parts: what we got, what we wanted, what to do.
"""

__all__ = [
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
]


class LatentSyncError(Exception):
    """Base of all errors below; `str(error)` is one line for a person."""


class InputError(LatentSyncError):
    """The caller's input can't be used as it is."""


class MediaError(InputError):
    """A file is not readable as the media it should be."""


class NoFaceFound(InputError):
    """No frame of the clip holds a face that the detector accepts."""


class OptionError(InputError, ValueError):
    """An option lies outside its range."""


class OutputError(InputError):
    """The output path can't be written."""


class WeightsError(LatentSyncError):
    """A model's weights can't be used."""


class WeightsMissing(WeightsError):
    """A weight file is not there."""


class WeightsMismatch(WeightsError):
    """A weight file holds another model than the one asked for."""


class TrainingError(LatentSyncError):
    """Training can't go on."""


class BackendUnavailable(LatentSyncError):
    """A device or an attention back end that was asked for can't be used here."""


class Cancelled(LatentSyncError):
    """The run was cancelled by its caller."""
