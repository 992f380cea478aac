"""Optional dependencies ("extras"), and what an error says where they aren't installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.errors import BackendUnavailable

__all__ = ["install_command", "needs_extra"]

ROOT = Path(__file__).resolve().parents[2]  # of a checkout, or site-packages


def install_command(extra: str) -> str:
    """Return the command that installs an extra: here from a checkout, or from an index."""
    package = "-e '." if (ROOT / "pyproject.toml").is_file() else "'latentsync"
    return f"pip install {package}[{extra}]'"


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Import packages of an extra in the block.

    Raises:
        BackendUnavailable: one of them can't be imported.
    """
    try:
        yield
    except ImportError as error:
        missing = getattr(error, "name", None)
        found = f"{what} needs {missing}" if missing else f"{what} can't be loaded ({error})"
        raise BackendUnavailable(f"{found}; install it by {install_command(extra)}") from error
