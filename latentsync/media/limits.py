"""Limits on files from outside, so that no small file exhausts the machine."""

from dataclasses import dataclass

from latentsync.errors import HOST, MediaError, option_name, with_option
from latentsync.options import Options

__all__ = ["DEFAULT_LIMITS", "MAX_NOTES_BYTES", "Limits", "advise_raising"]

MAX_NOTES_BYTES = 2**26  # bytes; the profiles of printers have a few million


@dataclass(frozen=True)
class Limits:
    """Upper limits on one file. Each check raises MediaError; `name` names the file.

    Sizes and durations are checked against what the file claims, before anything is decoded, and
    again as it is read, because files lie.
    """

    max_pixels: int = Options.max_pixels  # of a frame
    max_seconds: float = Options.max_seconds  # of the pictures, and of the sound
    max_bytes: int = Options.max_bytes  # of the file

    @classmethod
    def of(cls, options: Options) -> "Limits":
        """Take the limits of one call."""
        return cls(options.max_pixels, options.max_seconds, options.max_bytes)

    def check_bytes(self, name: str, size: int) -> None:
        """Check a file of `size` bytes."""
        if size > self.max_bytes:
            raise MediaError(
                f"{name} has {size} bytes where at most {self.max_bytes} are read:"
                f" cut or compress it{advise_raising('max_bytes')}"
            )

    def check_samples(self, name: str, samples: int, size: int) -> None:
        """Check the samples (frames and packets) that a file of `size` bytes claims."""
        if samples > size:
            raise MediaError(
                f"{name} claims {samples} samples in {size} bytes: it is damaged, or made to"
                " exhaust memory; if a player shows it, save it anew with a video editor"
                f"{with_option(HOST, ', or by ffmpeg -i IN -c copy OUT.mp4')}"
            )

    def check_notes(self, name: str, unpacked: int) -> None:
        """Check a picture by the bytes that its colour profile and texts unpack to."""
        if unpacked >= MAX_NOTES_BYTES:
            raise MediaError(
                f"{name} has a colour profile or texts of {MAX_NOTES_BYTES} bytes or more: it is"
                " damaged, or made to exhaust memory; save it anew without them"
            )

    def check_pixels(self, name: str, width: int, height: int) -> None:
        """Check frames of `width` x `height` px."""
        if width * height > self.max_pixels:
            raise MediaError(
                f"{name} has frames of {width} x {height} px where at most"
                f" {self.max_pixels} px are read: scale it down"
                f"{advise_raising('max_pixels')}"
            )

    def check_seconds(self, name: str, seconds: float) -> None:
        """Check the duration of pictures or sound."""
        if seconds > self.max_seconds:
            raise MediaError(
                f"{name} goes on for {seconds:.2f} s where at most {self.max_seconds:g} s are"
                f" read: cut it{advise_raising('max_seconds')}"
            )


def advise_raising(limit: str) -> str:
    """Return the advice to raise a limit, for callers who have that option."""
    return with_option(limit, f", or raise {option_name(limit)}")


DEFAULT_LIMITS = Limits()
