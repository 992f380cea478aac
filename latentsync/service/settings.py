"""Settings that a service starts with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from latentsync.errors import OptionError, OutputError, option_name
from latentsync.options import Option
from latentsync.runtime.files import private_folder

__all__ = ["AGREED", "HOUR", "MODEL_PATH", "ServiceSettings", "make_private", "process_folder"]

HOUR = 3600.0  # s
MODEL_PATH = "bytedance/lipsync/audio-to-video"  # the hosted model whose requests are understood

MAX_URL_HOURS = 168  # 7 days, the longest that S3 signs an address for
USUAL_SHARE = 5  # so many keys that keep all they may fill the storage
# What every process of a service must agree on. `latentsync serve` writes it to the database, and
# workers read it there.
AGREED = (
    "max_upload_bytes",
    "max_stored_bytes",
    "max_seconds",
    "keep_hours",
    "upload_hours",
    "lease_seconds",
    "max_lost",
    "private_addresses",
)


_LIMIT = partial(Option, "Limits")


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of one service.

    Raises:
        OptionError: a value out of its range.
    """

    data: Path = Path("latentsync-data")  # folder of the SQLite file and of what is stored
    database: str = ""  # URL; "": SQLite in `data`
    storage: str = ""  # folder, or s3://BUCKET/PREFIX; "": a folder in `data`
    public_url: str = "http://127.0.0.1:8000"  # where clients reach the service
    model: str = "v1.6"
    weights: Path | None = None
    device: str | None = None
    compile: bool | None = None  # kernels by torch.compile as a worker starts; None: on a GPU
    max_upload_bytes: Annotated[
        int, _LIMIT("Bytes of an upload, or of a file fetched from an address.")
    ] = 2 * 2**30
    max_stored_bytes: Annotated[int, _LIMIT("Bytes of all uploads and outputs together.")] = (
        50 * 2**30
    )
    max_seconds: Annotated[float, _LIMIT("Seconds of a clip, and of a sound.")] = 1800.0
    keep_hours: Annotated[float, _LIMIT("Hours that ended tasks and their outputs are kept.")] = (
        7 * 24.0
    )
    upload_hours: Annotated[
        float, _LIMIT("Hours that an upload is kept after a task last named it.")
    ] = 24.0
    url_hours: Annotated[
        float, _LIMIT("Hours that the address of an output is valid, up to 168.")
    ] = 24.0
    lease_seconds: Annotated[
        float, _LIMIT("Seconds without a sign of life after which a worker is taken for dead.")
    ] = 30.0
    max_lost: int = 3  # so many workers may die over a task before it is given up
    give_up_hours: float = 24.0  # how long a task is tried again for what isn't its fault
    sync_seconds: float = 120.0  # how long an answer to enable_sync_mode may take
    private_addresses: Annotated[
        bool,
        _LIMIT(
            "Allow inputs and webhooks on this network, which whoever has a key can then reach."
        ),
    ] = False

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "max_stored_bytes", "max_seconds", "keep_hours",
                     "upload_hours", "url_hours", "lease_seconds", "max_lost",
                     "give_up_hours"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise OptionError(
                    f"{option_name(name)} is {getattr(self, name)}; it must be more than 0"
                )
        if self.url_hours > MAX_URL_HOURS:
            raise OptionError(
                f"{option_name('url_hours')} is {self.url_hours}; it must be at most "
                f"{MAX_URL_HOURS}, as long as S3's signatures hold"
            )
        if not self.public_url.startswith(("http://", "https://")):
            raise OptionError(
                f"{option_name('public_url')} is {self.public_url!r}; it must be where clients "
                "reach this service, such as https://lips.example.org"
            )

    @property
    def database_url(self) -> str:
        """URL of the database: `database`, or the SQLite file in `data`, whose folder is made.

        Raises:
            OutputError: the folder can't be made.
        """
        if self.database:
            return self.database
        from sqlalchemy import URL  # the command line reads these settings without it

        make_private(self.data)
        file = URL.create("sqlite", database=str(self.data / "tasks.db"))
        return file.render_as_string()  # quoted: a folder's name may hold "?"

    @property
    def storage_url(self) -> str:
        """URL of the storage: `storage`, or a folder in `data`."""
        return self.storage or str(self.data / "files")

    @property
    def usual_share(self) -> int:
        """Bytes that a key may keep, unless it was created with another share."""
        return self.max_stored_bytes // USUAL_SHARE

    @property
    def base(self) -> str:
        """`public_url` without a slash at its end."""
        return self.public_url.rstrip("/")


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can read, unless it is there.

    Raises:
        OutputError: it can't be made, or a file has its name.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the data folder {str(folder)!r} can't be made ({error.strerror}): "
            "give --data a folder that may be written"
        ) from error


@contextmanager
def process_folder(parent: Path, name: str | None = None) -> Iterator[Path]:
    """Make a folder in `parent` for this process alone, which only its owner can read.

    It is removed at the end; where the process is killed, when the next one calls this.

    Raises:
        OutputError: it can't be made.
    """
    make_private(parent)
    with ExitStack() as stack:
        try:
            parent.chmod(0o700)  # also one that was there
            folder = stack.enter_context(private_folder(parent, name))
        except OSError as error:
            raise OutputError(
                f"{str(parent)!r} can't be written ({error.strerror}): make room, or give --data "
                "a folder that may be written"
            ) from error
        yield folder
