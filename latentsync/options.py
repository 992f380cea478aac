"""What one call asks for: `Options`, and how much work it takes: `Effort`."""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from latentsync.errors import OptionError, option_name
from latentsync.types import SyncMode

__all__ = ["MAX_SEED", "MIN_SIDE", "RESTORERS", "SPEEDS", "Codec", "Effort", "Options", "Preset"]

MAX_GUIDANCE = 10
MAX_STEPS = 50
MAX_CRF = 51
MAX_SEED = 2**32 - 1
MIN_SIDE, MAX_SIDE = 16, 16384  # px
MAX_LEAD = 3600  # s
MAX_LIMIT = 2**63  # of any count of pixels, seconds, bytes
MAX_FADE = 25  # frames
MAX_SMOOTH = 51  # frames
YAWS = (5, 85)  # degrees
MAX_OVERLAP = 12  # frames of a group of 16
MAX_CACHE_INTERVAL = 10  # steps
MAX_DETECT_EVERY = 50  # frames
MAX_BATCH = 16  # groups
RATIOS = (1, 4)  # crops beyond would be larger than 8K shows a face
RESTORERS = ("gfpgan", "codeformer")  # known by name

_TRACK = re.compile(r"[1-9]\d{0,3}|[A-Za-z]{2,3}([-_][A-Za-z\d]{1,8}){0,3}|auto")

Speed = Literal["exact", "fast", "preview"]
Sampler = Literal["ddim", "dpm++"]

Codec = Literal["h264", "hevc", "h264_nvenc", "hevc_nvenc"]
Preset = Literal[  # x264's names, of all encoders
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
]


@dataclass(frozen=True)
class Effort:
    """How much work the network is given: fewer operations are faster, and change the result."""

    steps: int = 20  # 1-50 of the sampler
    sampler: Sampler = "ddim"
    cache_interval: int = 1  # every so many steps the deep layers are computed; 1: at each
    guidance_start: float = 0.0  # 0-1, the share of the steps before which there is no guidance
    guidance_stop: float = 1.0  # 0-1, the share of the steps after which there is none
    detect_every: int = 1  # frames; between them a face that is known is followed by its landmarks


SPEEDS: dict[str, Effort] = {
    "exact": Effort(),
    "fast": Effort(steps=8, sampler="dpm++", guidance_stop=0.8, detect_every=4),
    "preview": Effort(steps=6, sampler="dpm++", guidance_stop=0.5, detect_every=8),
}


@dataclass(frozen=True)
class Options:
    """What one call asks for. `Options.published()` names every choice of the published code.

    Raises:
        OptionError: a value out of its range.
    """

    guidance_scale: float = 1.0  # 0-10; at most 1: no classifier-free guidance (CFG)
    speed: Speed = "exact"  # how much work is saved, where nothing below says it by itself
    steps: int | None = None  # 1-50, of the sampler
    sampler: Sampler | None = None
    cache_interval: int | None = None  # 1-10, see Effort
    guidance_start: float | None = None  # 0-1
    guidance_stop: float | None = None  # 0-1
    detect_every: int | None = None  # 1-50 frames
    batch: int | None = None  # 1-16 groups of frames at once; None: what memory allows
    seed: int = 0  # 0: draw one; the one used is in Result
    codec: Codec = "h264"
    crf: int = 17  # 0 (lossless) - 51, the encoder's constant rate factor
    preset: Preset = "medium"  # how long the encoder searches
    max_side: int | None = None  # 16-16384 px, larger pictures are scaled down to it
    lead_in: float = 0.0  # 0-3600 s of the clip before the voice
    lead_out: float = 0.0  # 0-3600 s of it after the voice
    fps: Literal["25", "source"] = "25"  # source: every frame of the clip, at its own time
    audio_track: str | int = "auto"  # of a sound with several: its number from 1, or a language
    face: str = "largest"  # or left, right, center, all, a place or a picture: faces.FaceChoice
    on_missing: Literal["keep", "error"] = "keep"  # keep: frames without the face pass through
    smooth: int = 0  # 0-51 frames over which the face's place is smoothed, an odd number
    silence: Literal["generate", "keep", "close"] = "generate"  # the mouth while nobody speaks
    color_match: bool = False  # whether the drawn mouth takes on the colours of its rim
    max_yaw: float | None = None  # 5-85 degrees; turned further, a face keeps its own mouth
    overlap: int = 0  # 0-12 frames that neighbouring groups share, blended at every step
    superres: str = "none"  # or gfpgan, codeformer (any case), a file: restorers.load_restorer
    sr_ratio: float = 2  # 1-4 times the network's resolution is what a restored crop has
    mask_smooth: float = 0.5  # 0-1, how softly a restored face goes over into the face around it
    sr_weight: float = 0.5  # 0-1, CodeFormer's fidelity
    sr_stability: float = 0.5  # 0-1, how much restored frames take on from those before them
    max_pixels: int = 8192 * 8192  # of an input's frames: 8K video, photographs of 64 million px
    max_seconds: float = 6 * 3600.0  # of an input's pictures and sound: longer than any film
    max_bytes: int = 64 * 2**30  # of an input: 6 hours at 20 Mbit/s are 54 GB
    cache_dir: str | None = None  # folder for what a clip's next run needn't compute again
    cache_bytes: int = 10 * 2**30  # that it may hold, about
    report: bool = False  # whether a JSON of the same name, with what was done, is written as well
    # Where ours and the published choice differ, ours is the default.
    follow: Literal["person", "frame"] = "person"  # frame: each by itself, no second look
    sync_mode: SyncMode = "bounce"  # a clip shorter or longer than the voice: timeline.lay_out
    fade: int = 3  # 0-25 frames over which the mouth comes and goes beside untouched frames
    length: Literal["exact", "published"] = "exact"  # ceil(seconds * 25), or floor(T / 2) + 2
    speech_windows: Literal["overlap", "disjoint"] = "overlap"  # disjoint: a seam every 30 s
    groups: Literal["even", "short_tail"] = "even"  # 17 frames: 9 + 8, or 16 + 1
    vae_posterior: Literal["mean", "sample"] = "mean"
    resampling: Literal["once", "published"] = "once"  # of crop and paste: align, as_published
    landmarks: Literal["subpixel", "rounded"] = "subpixel"
    paste: Literal["mouth", "crop"] = "mouth"  # crop also takes the eyes through the resize
    conversion: Literal["exact", "published"] = "exact"  # to 25 fps: the fps filter, or ffmpeg -r

    def __post_init__(self) -> None:
        _in_range("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE, whole=False)
        effort = self.effort
        _in_range("steps", effort.steps, 1, MAX_STEPS)
        _in_range("cache_interval", effort.cache_interval, 1, MAX_CACHE_INTERVAL)
        _in_range("guidance_start", effort.guidance_start, 0, 1, whole=False)
        _in_range("guidance_stop", effort.guidance_stop, 0, 1, whole=False)
        _in_range("detect_every", effort.detect_every, 1, MAX_DETECT_EVERY)
        if self.batch is not None:
            _in_range("batch", self.batch, 1, MAX_BATCH)
        _in_range("seed", self.seed, 0, MAX_SEED)
        _in_range("crf", self.crf, 0, MAX_CRF)
        _in_range("lead_in", self.lead_in, 0, MAX_LEAD, whole=False)
        _in_range("lead_out", self.lead_out, 0, MAX_LEAD, whole=False)
        _in_range("fade", self.fade, 0, MAX_FADE)
        _in_range("smooth", self.smooth, 0, MAX_SMOOTH)
        _in_range("overlap", self.overlap, 0, MAX_OVERLAP)
        if self.smooth and self.smooth % 2 == 0:
            raise OptionError(
                f"{option_name('smooth')} is {self.smooth}; it must be 0 or an odd number of frames"
            )
        _in_range("sr_ratio", self.sr_ratio, *RATIOS, whole=False)
        for name in ("mask_smooth", "sr_weight", "sr_stability"):
            _in_range(name, getattr(self, name), 0, 1, whole=False)
        _in_range("max_pixels", self.max_pixels, 1, MAX_LIMIT)
        _in_range("max_seconds", self.max_seconds, 0.001, MAX_LIMIT, whole=False)
        _in_range("cache_bytes", self.cache_bytes, 2**20, MAX_LIMIT)
        _in_range("max_bytes", self.max_bytes, 1, MAX_LIMIT)
        if self.max_yaw is not None:
            _in_range("max_yaw", self.max_yaw, *YAWS, whole=False)
        if self.max_side is not None:
            _in_range("max_side", self.max_side, MIN_SIDE, MAX_SIDE)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed and not (value is None and name in _FIELDS_OF_EFFORT):
                raise OptionError(
                    f"{option_name(name)} is {value!r}; it must be one of "
                    f"{', '.join(map(repr, allowed))}"
                )
        self._check_audio_track()
        kinds = {"face": str, "superres": str, "color_match": bool, "report": bool}
        for name, kind in kinds.items():
            got = getattr(self, name)
            if not isinstance(got, kind):
                raise OptionError(f"{option_name(name)} is {got!r}; it must be a {kind.__name__}")
        if not isinstance(self.cache_dir, str | None):
            raise OptionError(
                f"{option_name('cache_dir')} is {self.cache_dir!r}; it must be a folder's name"
            )
        if self.restorer and self.resampling == "published":
            raise OptionError(
                f"{option_name('superres')} is {self.superres!r} and {option_name('resampling')} "
                "'published'; restored faces want "
                "'once': leave one of the two out"
            )

    def _check_audio_track(self) -> None:
        given = self.audio_track
        known = isinstance(given, str | int) and not isinstance(given, bool)
        if not known or not _TRACK.fullmatch(str(given)):
            raise OptionError(
                f"{option_name('audio_track')} is {given!r}; it must be 'auto', the track's number "
                "from 1, or a language such as 'en', 'eng' or 'de'"
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
        """What `speed` says, and over it what the fields of the same names say."""
        said = {name: getattr(self, name) for name in _FIELDS_OF_EFFORT}
        named = {name: value for name, value in said.items() if value is not None}
        return replace(SPEEDS.get(str(self.speed), Effort()), **named)

    def changes(self) -> str:
        """The options that are not as by default, by name."""
        usual = Options()
        return ", ".join(
            f"{name} {value!r}" for name, value in vars(self).items() if value != vars(usual)[name]
        )

    @classmethod
    def published(cls, **changes: Any) -> "Options":  # noqa: ANN401 - the fields above, by name
        """The choices of the published scripts/inference.py, by name; `changes` override them.

        inference.sh changes two of them: guidance_scale 1.5 and cache_interval 3 (DeepCache). Not
        covered: the three lossy encodes (crf 18, 13, 18) and the sound as 16 kHz mono. There is one
        encode here, and the sound keeps its rate and channels.
        """
        choices: dict[str, Any] = {
            "seed": 1247,
            "on_missing": "error",
            "sync_mode": "pingpong",
            "follow": "frame",
            "fade": 0,
            "length": "published",
            "speech_windows": "disjoint",
            "groups": "short_tail",
            "vae_posterior": "sample",
            "resampling": "published",
            "landmarks": "rounded",
            "paste": "crop",
            "conversion": "published",
        }
        return cls(**(choices | changes))


_FIELDS_OF_EFFORT = tuple(one.name for one in fields(Effort))


def _allowed(hint: object) -> tuple[str, ...]:
    """The values of a Literal, also of one that may be None; () of everything else."""
    kinds = (hint, *get_args(hint))
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


_CHOICES: dict[str, tuple[str, ...]] = {
    name: allowed for name, hint in get_type_hints(Options).items() if (allowed := _allowed(hint))
}


def _in_range(name: str, value: object, low: float, high: float, *, whole: bool = True) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        number = "a whole number" if whole else "a number"
        raise OptionError(
            f"{option_name(name)} is {value!r}; it must be {number} from {low} to {high}"
        )
