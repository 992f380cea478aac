"""Options of one call: `Options`, and the work that the network does for it: `Effort`.

Each field of `Options` declares its type, default, bounds and help. The command line, the task API,
the web page and docs/options.md derive theirs from it by `declared`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from latentsync.errors import OptionError, option_name
from latentsync.types import SyncMode

__all__ = [
    "FACES",
    "GENERAL",
    "MAX_SEED",
    "MIN_SIDE",
    "PUBLISHED",
    "RESTORERS",
    "SPEEDS",
    "Codec",
    "Declared",
    "Effort",
    "FaceName",
    "Option",
    "Options",
    "Preset",
    "declared",
]

MAX_SEED = 2**32 - 1
MIN_SIDE = 16  # px
UNBOUNDED = 2**63  # the upper bound of counts that only the machine limits
RESTORERS = ("gfpgan", "codeformer")  # known by name
FaceName = Literal["largest", "left", "right", "center", "all"]
FACES = (  # values of the option `face`, but for a picture's path
    f"{', '.join(get_args(FaceName))}, a point x,y or a box x,y,width,height in px (with @seconds "
    "for a later time)"
)

Speed = Literal["exact", "fast", "preview"]
Sampler = Literal["ddim", "dpm++"]

Codec = Literal["h264", "hevc", "h264_nvenc", "hevc_nvenc"]
Preset = Literal[  # x264's names, of all encoders
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
    "placebo",
]  # fmt: skip

GENERAL = "General"  # what stands in no panel of its own on the command line
PUBLISHED = "Choices of the published code"


@dataclass(frozen=True)
class Option:
    """Declaration of a field, beside its type and default."""

    group: str  # panel of the command line, heading in docs/options.md
    description: str  # in sentences, without the range and the default
    within: tuple[float, float] | None = None  # the smallest and the largest number allowed
    unset: str = ""  # what None stands for
    published: Any = None  # the published code's choice, where it is another than the default
    pattern: str = ""  # a regular expression that the whole value matches, as text
    wanted: str = ""  # what a value must be, where type and bounds don't say it


@dataclass(frozen=True)
class Declared(Option):
    """A field of a dataclass with its whole declaration."""

    name: str = ""
    hint: Any = None  # its type, without the `Option`
    default: Any = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal; () for every other type."""
        parts = (self.hint, *get_args(self.hint))
        return next((get_args(part) for part in parts if get_origin(part) is Literal), ())

    @property
    def types(self) -> tuple[type, ...]:
        """The types that a value may have, without None."""
        if self.choices:
            return (type(self.choices[0]),)
        return tuple(part for part in get_args(self.hint) if part is not NoneType) or (self.hint,)

    @property
    def values(self) -> str:
        """The values allowed: a range or a list; "" where the description says all."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.within is None:
            return ""
        low, high = self.within
        return f"at least {low}" if high == UNBOUNDED else f"{low} to {high}"

    @property
    def help(self) -> str:
        """The description and the values allowed, in sentences."""
        values = self.values and f" {self.values[0].upper()}{self.values[1:]}."
        return self.description + values

    def check(self, value: object) -> None:
        """Raise OptionError unless the field may have this value."""
        if not self._allows(value):
            raise OptionError(f"{option_name(self.name)} is {value!r}; it must be {self._wanted()}")

    def _allows(self, value: object) -> bool:
        if value is None:
            return NoneType in get_args(self.hint)
        if self.choices:
            return value in self.choices
        types = (int, float) if float in self.types else self.types
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            return False
        if self.within and isinstance(value, int | float):
            return self.within[0] <= value <= self.within[1]
        return not self.pattern or bool(re.fullmatch(self.pattern, str(value)))

    def _wanted(self) -> str:
        if self.wanted:
            return self.wanted
        if self.choices:
            return f"one of {', '.join(map(repr, self.choices))}"
        if self.within is None:
            return "true or false" if bool in self.types else "text"
        low, high = self.within
        kind = "a whole number" if int in self.types else "a number"
        bound = "on, and finite" if float in self.types else "on"
        return f"{kind} from {low} {bound if high == UNBOUNDED else f'to {high}'}"


@cache
def declared(cls: type) -> Mapping[str, Declared]:
    """Read the fields of a dataclass that declare an `Option`, by name."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        kind, *extras = get_args(hints[field.name]) or (None,)
        for option in extras:
            if isinstance(option, Option):
                facts = {"name": field.name, "hint": kind, "default": field.default}
                found[field.name] = Declared(**vars(option), **facts)
    return found


@dataclass(frozen=True)
class Effort:
    """Work of the network for one run; see the fields of the same names in `Options`."""

    steps: int = 20
    sampler: Sampler = "ddim"
    cache_interval: int = 1
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    detect_every: int = 1


SPEEDS: dict[str, Effort] = {
    "exact": Effort(),
    "fast": Effort(steps=8, sampler="dpm++", guidance_stop=0.8, detect_every=4),
    "preview": Effort(steps=6, sampler="dpm++", guidance_stop=0.5, detect_every=8),
}
_OF_EFFORT = tuple(field.name for field in fields(Effort))


def _by_speed(name: str) -> str:
    """List the values of a field of Effort: "exact 20, fast 8, preview 6", or one for all."""
    values = {speed: getattr(effort, name) for speed, effort in SPEEDS.items()}
    if len(set(values.values())) == 1:
        return str(values["exact"])
    return ", ".join(f"{speed} {value}" for speed, value in values.items())


_GENERAL = partial(Option, GENERAL)
_SPEED = partial(Option, "Speed")
_PACE = partial(Option, "Length and pace")
_FACE = partial(Option, "Face")
_RESTORATION = partial(Option, "Super-resolution")
_ENCODING = partial(Option, "Encoding")
_LIMITS = partial(Option, "Limits on what an input may ask for")
_PUBLISHED = partial(Option, PUBLISHED)


@dataclass(frozen=True)
class Options:
    """Options of one call. `Options.published()` takes the choices of the published code.

    Raises:
        OptionError: a value is out of its range.
    """

    # A table. Of each field: the type, the help, the bounds and the default.
    # fmt: off
    guidance_scale: Annotated[float, _GENERAL(
        "Influence of the voice on the mouth (classifier-free guidance). Above 1 the voice "
        "counts for more, and each step takes twice as long.", within=(0, 10))] = 1.0
    seed: Annotated[int, _GENERAL(
        "Seed of the noise. Equal seeds give equal results; 0 picks a random seed, which the "
        "result reports.", within=(0, MAX_SEED), published=1247)] = 0
    silence: Annotated[Literal["generate", "keep", "close"], _GENERAL(
        "Mouth while nobody speaks: generate it, keep the clip's own, or close it.")] = "generate"
    overlap: Annotated[int, _GENERAL(
        "Frames that neighbouring groups of 16 share. More make seams softer and take longer.",
        within=(0, 12))] = 0
    audio_track: Annotated[str | int, _GENERAL(
        "Sound track to use where a file has several: its number from 1, a language such as en "
        "or eng, or auto, the main track unless it is silent.",
        pattern=r"[1-9]\d{0,3}|[A-Za-z]{2,3}([-_][A-Za-z\d]{1,8}){0,3}|auto",
        wanted="'auto', the track's number from 1, or a language such as 'en', 'eng' or 'de'"
    )] = "auto"
    report: Annotated[bool, _GENERAL(
        "Also write what was done to a .json file beside the output.")] = False

    speed: Annotated[Speed, _SPEED(
        "Preset for speed: exact, or fewer operations at some cost of quality.")] = "exact"
    steps: Annotated[int | None, _SPEED(
        "Denoising steps.", within=(1, 50), unset=_by_speed("steps"))] = None
    sampler: Annotated[Sampler | None, _SPEED(
        "Sampler. dpm++ (DPM-Solver++) needs fewer steps.", unset=_by_speed("sampler"))] = None
    cache_interval: Annotated[int | None, _SPEED(
        "Steps from one computation of the U-Net's deep layers to the next (DeepCache).",
        within=(1, 10), unset=_by_speed("cache_interval"))] = None
    guidance_start: Annotated[float | None, _SPEED(
        "Share of the steps before guidance begins.", within=(0, 1),
        unset=_by_speed("guidance_start"))] = None
    guidance_stop: Annotated[float | None, _SPEED(
        "Share of the steps after which guidance ends.", within=(0, 1),
        unset=_by_speed("guidance_stop"))] = None
    detect_every: Annotated[int | None, _SPEED(
        "Frames from one face detection to the next. Known faces are followed in between.",
        within=(1, 50), unset=_by_speed("detect_every"))] = None
    batch: Annotated[int | None, _SPEED(
        "Groups of 16 frames that the network computes at once.", within=(1, 16),
        unset="as many as memory allows")] = None
    cache_dir: Annotated[str | None, _SPEED(
        "Cache folder for face tracks and latents. Another voice on the same clip then takes "
        "less time.",
        unset="none", wanted="a folder's name")] = None
    cache_bytes: Annotated[int, _SPEED(
        "Size limit of that folder in bytes, approximate.", within=(2**20, UNBOUNDED))] = 10 * 2**30

    sync_mode: Annotated[SyncMode, _PACE(
        "What to do where the clip is shorter or longer than the voice.",
        published="pingpong")] = "bounce"  # see `timeline.lay_out`
    lead_in: Annotated[float, _PACE(
        "Seconds of the clip that are shown before the voice.", within=(0, 3600))] = 0.0
    lead_out: Annotated[float, _PACE(
        "Seconds of the clip that are shown after the voice.", within=(0, 3600))] = 0.0
    fps: Annotated[Literal["25", "source"], _PACE(
        "Frame rate: 25, or every frame of the clip at its own time (source).")] = "25"
    fade: Annotated[int, _PACE(
        "Frames over which the mouth fades in and out next to untouched frames.",
        within=(0, 25), published=0)] = 3

    face: Annotated[str, _FACE(
        f"Face that speaks: {FACES}, or a picture of the person."
    )] = "largest"  # see `faces.FaceChoice`
    on_missing: Annotated[Literal["keep", "error"], _FACE(
        "Frames without the face: keep them as they are, or fail.", published="error")] = "keep"
    smooth: Annotated[int, _FACE(
        "Frames over which the face's position is smoothed: an odd number, or 0 for none.",
        within=(0, 51))] = 0
    max_yaw: Annotated[float | None, _FACE(
        "Degrees of head turn beyond which a face keeps the clip's own mouth.", within=(5, 85),
        unset="no limit")] = None
    color_match: Annotated[bool, _FACE("Give the mouth the colours of the face around it.")] = False

    superres: Annotated[str, _RESTORATION(
        "Face restoration: none, gfpgan, codeformer (not for commercial use), or a model file "
        "that spandrel can load."
    )] = "none"  # names in any case; see `load_restorer`
    sr_ratio: Annotated[float, _RESTORATION(
        "Resolution of a restored face, as a multiple of the model's.", within=(1, 4))] = 2
    mask_smooth: Annotated[float, _RESTORATION(
        "Softness of the transition from a restored face to the face around it.",
        within=(0, 1))] = 0.5
    sr_weight: Annotated[float, _RESTORATION(
        "CodeFormer's fidelity: 0 cleanest, 1 nearest to the clip.", within=(0, 1))] = 0.5
    sr_stability: Annotated[float, _RESTORATION(
        "How strongly flicker of restored faces is suppressed.", within=(0, 1))] = 0.5

    codec: Annotated[Codec, _ENCODING(
        "Video encoder. h264_nvenc and hevc_nvenc need an NVIDIA GPU.")] = "h264"
    crf: Annotated[int, _ENCODING(
        "Quality, as the encoder's constant rate factor: 0 is lossless.", within=(0, 51))] = 17
    preset: Annotated[Preset, _ENCODING(
        "Speed of the encoder: slower presets make smaller files.")] = "medium"
    max_side: Annotated[int | None, _ENCODING(
        "Longest side in px, to which larger pictures are scaled down.", within=(MIN_SIDE, 16384),
        unset="no limit")] = None

    # The defaults: 8K video and photographs of 64 million px; longer than any film; 6 hours at
    # 20 Mbit/s are 54 GB.
    max_pixels: Annotated[int, _LIMITS(
        "Maximum pixels in one frame of an input.", within=(1, UNBOUNDED))] = 8192 * 8192
    max_seconds: Annotated[float, _LIMITS(
        "Maximum length of an input's pictures or sound, in seconds.",
        within=(0.001, UNBOUNDED))] = 6 * 3600.0
    max_bytes: Annotated[int, _LIMITS(
        "Maximum size of an input file, in bytes.", within=(1, UNBOUNDED))] = 64 * 2**30

    # Where ours and the published choice differ, ours is the default.
    follow: Annotated[Literal["person", "frame"], _PUBLISHED(
        "Choice of the face: follow one person, or choose anew in each frame.",
        published="frame")] = "person"
    length: Annotated[Literal["exact", "published"], _PUBLISHED(
        "Frames of the output: ceil(25 x seconds of the voice), or floor(Whisper tokens / 2) + 2.",
        published="published")] = "exact"
    speech_windows: Annotated[Literal["overlap", "disjoint"], _PUBLISHED(
        "Windows that Whisper encodes. Disjoint ones leave a seam every 30 s.",
        published="disjoint")] = "overlap"
    groups: Annotated[Literal["even", "short_tail"], _PUBLISHED(
        "Groups of frames that the network computes: 17 are 9 + 8, or 16 + 1.",
        published="short_tail")] = "even"
    vae_posterior: Annotated[Literal["mean", "sample"], _PUBLISHED(
        "Latents of the clip: the mean of the VAE's posterior, or a sample.",
        published="sample")] = "mean"
    resampling: Annotated[Literal["once", "published"], _PUBLISHED(
        "Resampling between frame and crop: once each way, or as published (less detail).",
        published="published")] = "once"  # see `faces.align` and `faces.align_published`
    landmarks: Annotated[Literal["subpixel", "rounded"], _PUBLISHED(
        "Precision of the landmarks: subpixel, or rounded to whole pixels.",
        published="rounded")] = "subpixel"
    paste: Annotated[Literal["mouth", "crop"], _PUBLISHED(
        "Part of the crop that is pasted. crop resamples the eyes as well.",
        published="crop")] = "mouth"
    conversion: Annotated[Literal["exact", "published"], _PUBLISHED(
        "Conversion to 25 frames a second: FFmpeg's fps filter, or ffmpeg -r.",
        published="published")] = "exact"
    # fmt: on

    def __post_init__(self) -> None:
        for name, option in declared(Options).items():
            option.check(getattr(self, name))
        if self.smooth and self.smooth % 2 == 0:
            raise OptionError(
                f"{option_name('smooth')} is {self.smooth}; it must be 0 or an odd number of frames"
            )
        if self.restorer and self.resampling == "published":
            raise OptionError(
                f"{option_name('superres')} is {self.superres!r} and {option_name('resampling')} "
                "'published'; restored faces want 'once': leave one of the two out"
            )

    @property
    def restorer(self) -> str | None:
        """The restoration net's name, or its file; None: no super-resolution."""
        name = self.superres.lower()
        if name == "none":
            return None
        return name if name in RESTORERS else self.superres

    @property
    def effort(self) -> Effort:
        """What `speed` bundles, overridden by the fields of the same names that are given."""
        given = {name: value for name in _OF_EFFORT if (value := getattr(self, name)) is not None}
        return replace(SPEEDS[self.speed], **given)

    def changes(self) -> str:
        """List the options that differ from the defaults, by name."""
        usual = vars(Options())
        return ", ".join(
            f"{name} {value!r}" for name, value in vars(self).items() if value != usual[name]
        )

    @classmethod
    def published(cls, **changes: Any) -> "Options":  # noqa: ANN401 - the fields above, by name
        """Take the choices of the published scripts/inference.py; `changes` override them.

        inference.sh changes two of them: guidance_scale 1.5 and cache_interval 3 (DeepCache). Not
        covered: the three lossy encodes (crf 18, 13, 18) and the sound as 16 kHz mono. There is one
        encode here, and the sound keeps its rate and channels.
        """
        options = declared(Options).values()
        choices = {one.name: one.published for one in options if one.published is not None}
        return cls(**(choices | changes))
