"""Requests of clients, spelled as in the hosted API; checked here, documented at /docs."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from latentsync.errors import Asker, OptionError
from latentsync.options import FACES, RESTORERS, Declared, FaceName, Options, declared
from latentsync.service.settings import ServiceSettings

__all__ = [
    "DESCRIPTIONS",
    "DeleteRequest",
    "PageRequest",
    "TaskRequest",
    "UploadRequest",
    "asker",
    "options_of",
]

MAX_ADDRESS = 4000  # characters: signed ones are long
MAX_WORD = 200  # characters: of an option, which errors repeat
MAX_PAGE = 100  # tasks

# The fields of Options that a stranger may choose.
OPTIONS = (
    *("guidance_scale", "seed", "speed", "steps", "sync_mode", "fps", "audio_track", "face"),
    *("on_missing", "silence", "smooth", "max_yaw", "color_match", "overlap", "lead_in"),
    *("lead_out", "max_side", "superres", "sr_ratio", "mask_smooth", "sr_weight", "sr_stability"),
)
# On the command line a face may be a picture's path, and a restorer a model's; from outside, a path
# is nobody's business.
NARROWER = {
    "face": f"Face that speaks: {FACES}.",
    "superres": "Face restoration: none, gfpgan or codeformer (not for commercial use).",
}
NUMBER = r"\d+(\.\d+)?"
FACE = re.compile(rf"{'|'.join(get_args(FaceName))}|{NUMBER}(,{NUMBER}){{1,3}}(@{NUMBER})?")
OTHER_NAMES = {"steps": AliasChoices("steps", "inference_steps")}

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL takes no NUL, UTF-8 no surrogate

Address = Annotated[
    str,
    Field(
        max_length=MAX_ADDRESS,
        pattern="^https?://",
        description="http(s) address: public, or what POST /api/v3/media/uploads answered.",
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, given: object) -> object:
        """Raise ValueError for text that a database or UTF-8 can't hold."""
        if isinstance(given, dict):
            for name, value in given.items():
                for text in (value, *value) if isinstance(value, list) else (name, value):
                    if isinstance(text, str) and UNSTORABLE.search(text):
                        raise ValueError(f"{name!r} holds NUL or half of a surrogate pair")
        return given


class _TaskRequest(_Strict):
    model_config = ConfigDict(strict=True)  # true is no number, and "7" is none

    audio: Address
    video: Address
    enable_sync_mode: bool = Field(False, description="Answer when the task has ended.")


def _field(option: Declared) -> tuple[Any, Any]:
    """Make pydantic's field of an option.

    Bounds are only documented here: `Options` checks them, and says so in its own words.
    """
    bounds: dict[str, Any] = {}
    if option.within:
        bounds = dict(zip(("minimum", "maximum"), option.within, strict=True))
    said = NARROWER.get(option.name, option.help)
    return option.hint, Field(
        option.default,
        description=f"{said} null: {option.unset}." if option.unset else said,
        validation_alias=OTHER_NAMES.get(option.name),
        max_length=MAX_WORD if option.hint is str else None,
        json_schema_extra=bounds,
    )


if TYPE_CHECKING:
    TaskRequest = _TaskRequest
else:
    TaskRequest = create_model(
        "TaskRequest",
        __base__=_TaskRequest,
        **{name: _field(declared(Options)[name]) for name in OPTIONS},
    )


def asker(inputs: Mapping[str, str] | None = None) -> Asker:
    """Return how clients call options, and by `inputs` the paths here."""
    return Asker({name: name for name in OPTIONS}.get, inputs or {})


class UploadRequest(_Strict):
    """A file that is going to be uploaded."""

    filename: str = Field("upload", max_length=1000)
    size: int = Field(strict=True, description="Bytes.")
    content_type: str = Field(
        "application/octet-stream",
        max_length=200,
        pattern="^[!-.0-~]+/[ -~]+$",  # ASCII: a header
    )


class PageRequest(_Strict):
    """Selection of tasks; the newest come first."""

    page: int = Field(1, ge=1, le=1_000_000)
    page_size: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    status: str | None = None
    model: str | None = None
    created_after: AwareDatetime | None = None
    created_before: AwareDatetime | None = None


class DeleteRequest(_Strict):
    """Tasks to delete."""

    ids: list[str] = Field(max_length=MAX_PAGE)


DESCRIPTIONS = {
    name: field.description
    for model in (TaskRequest, UploadRequest, PageRequest, DeleteRequest)
    for name, field in model.model_fields.items()
    if field.description
}
"""Descriptions of fields, by name."""


def options_of(asked: dict[str, Any], settings: ServiceSettings) -> Options:
    """Make the options of a run from a task's `input`, within the limits of the service.

    Raises:
        OptionError: a value out of its range, or a file where a word or a place is wanted.
    """
    chosen = {name: asked[name] for name in OPTIONS if name in asked}
    if not FACE.fullmatch(face := chosen.get("face", Options.face)):
        raise OptionError(
            f"face is {face!r}; it must be {FACES}, such as 120,80 or 120,80,90,110@2.5"
        )
    if (net := chosen.get("superres", "none")).lower() not in ("none", *RESTORERS):
        raise OptionError(f"superres is {net!r}; it must be none, {' or '.join(RESTORERS)}")
    return Options(**chosen, max_bytes=settings.max_upload_bytes, max_seconds=settings.max_seconds)
