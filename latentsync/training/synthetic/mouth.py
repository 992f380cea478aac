"""The mouth: its outline, how the face deforms around it, and its interior.

The face is painted once with the lips shut. To open them, each pixel of a frame is looked up where
it lay on that painting: skin above follows the upper lip, skin below the lower lip and the jaw.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.canvas import soft_edge
from latentsync.training.synthetic.identity import Identity
from latentsync.types import FloatArray

__all__ = ["Mouth", "PosedMouth", "interior", "lips", "rest_line", "rest_outline"]


@dataclass(frozen=True)
class Mouth:
    """One moment of a mouth: the columns of `visemes.TRACKS`, in the same ranges."""

    open: float = 0.0
    wide: float = 0.0
    round: float = 0.0
    bite: float = 0.0
    tongue: float = 0.0

    @classmethod
    def from_track(cls, row: NDArray[np.floating]) -> "Mouth":
        """Make one of a row of `visemes.mouth_tracks`."""
        return cls(*(float(value) for value in row))


def rest_line(who: Identity, x: NDArray[np.floating]) -> FloatArray:
    """y of the line between the shut lips."""
    u = np.asarray(x) / who.mouth_width
    wave = 0.006 * np.cos(np.clip(u, -1, 1) * np.pi * 1.6)
    lifted = who.mouth_y - who.smile * (np.minimum(u**2, 2) - 0.3) + wave
    return lifted.astype(np.float32)


def rest_outline(who: Identity, x: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """y of the outer edges of upper and lower lip at rest; both meet the line at the corners."""
    u = np.clip(np.abs(x) / who.mouth_width, 0, 1)
    line = rest_line(who, x)
    bow = who.bow * np.exp(-0.5 * (u / 0.12) ** 2)
    upper = line - who.lip_upper * (1 - u**1.7) + bow
    lower = line + who.lip_lower * (1 - u**2.4)
    return upper.astype(np.float32), lower.astype(np.float32)


@dataclass(frozen=True)
class PosedMouth:
    """The mouth of one person at one moment; it maps points of the moved face."""

    who: Identity
    mouth: Mouth
    gap: float  # between the lips in the middle, head units
    drop: float  # of the chin
    pull: float  # how much wider (or narrower) the mouth's middle is drawn
    half_width: float  # corner to middle

    def _stretch(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """x on the painting: the lips and cheeks are pulled outwards or drawn in."""
        rise = y - self.who.mouth_y - 0.3 * self.gap
        away = np.exp(-((x / 0.58) ** 2) - (rise / 0.26) ** 2)
        return (x / (1 + (self.pull - 1) * away)).astype(np.float32)

    def _jaw(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """How far the jaw has taken a point down: not the cheekbones, the chin all the way."""
        share = np.clip((y - 0.2) / (self.who.chin - 0.25), 0, 1)
        return self.drop * share * share * (3 - 2 * share) * (1 - 0.12 * np.minimum(x * x, 1.5))

    def _rest_line(self, x: FloatArray) -> FloatArray:
        """y of the painted lips' line at the same place along the mouth."""
        return rest_line(self.who, x * np.float32(self.who.mouth_width / self.half_width))

    def edges(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """y of the upper and the lower lip's inner edge in the moved face."""
        u = np.clip(np.abs(x) / self.half_width, 0, 1)
        arch = 1 - u ** (2.3 - 0.4 * self.mouth.round)
        rest = self._rest_line(x)
        line = rest + self._jaw(x, rest)
        middle = self.gap * arch
        return (line - 0.3 * middle).astype(np.float32), (line + 0.7 * middle).astype(np.float32)

    def source(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Map points of the moved face to the painting with shut lips."""
        mouth = self.mouth
        upper, lower = self.edges(x)
        below = y > (upper + lower) / 2
        edge = np.where(below, lower, upper)
        at_edge = edge - self._rest_line(x)
        off = y - edge
        fade = np.exp(-((off / 0.3) ** 2))
        thick = 1 + 0.3 * mouth.round - 0.1 * max(mouth.wide, 0) - 0.1 * mouth.open
        swell = off * (1 - 1 / thick) * np.exp(-((off / 0.16) ** 2))
        swell -= 0.85 * mouth.bite * below * off * np.exp(-((off / 0.09) ** 2))
        shift = self._jaw(x, y) + (at_edge - self._jaw(x, edge)) * fade + swell
        cheek = np.exp(-(((np.abs(x) - 0.55) / 0.25) ** 2) - ((y - 0.4) / 0.22) ** 2)
        return self._stretch(x, y), (y - shift + 0.05 * mouth.wide * cheek).astype(np.float32)

    def moved(self, rest_y: float, *, above: bool) -> float:
        """Where a point of the painting's middle line, above or below the lips, has gone to."""
        edge = float(self.edges(np.zeros(1, np.float32))[0 if above else 1][0])
        start, stop, count = (-0.4, 0, 200) if above else (1e-4, 0.6, 300)
        y = np.linspace(edge + start, edge + stop, count)
        _, source = self.source(np.zeros_like(y, np.float32), y.astype(np.float32))
        return float(np.interp(rest_y, source, y))


def lips(who: Identity, mouth: Mouth) -> PosedMouth:
    """The mouth of this person in this moment."""
    pull = 1 + 0.18 * mouth.wide - 0.4 * mouth.round - 0.08 * mouth.open * (1 - mouth.round)
    gap = who.reach * mouth.open * (1 - 0.12 * mouth.round)
    shape = PosedMouth(who, mouth, gap, 0.42 * gap, pull, who.mouth_width * pull)
    # The pull fades with the distance, so the corner is where the painting's corner shows.
    x = np.linspace(0.05, 0.8, 400, dtype=np.float32)
    edge, _ = shape.edges(x)
    corner = np.interp(who.mouth_width, shape._stretch(x, edge), x)
    return replace(shape, half_width=float(corner))


def interior(
    shape: PosedMouth, x: FloatArray, y: FloatArray, pixel: float
) -> tuple[FloatArray, FloatArray]:
    """What shows between the lips: colour (..., 3) in 0..255, and coverage (...) in 0..1.

    x and y are points of the moved face, `pixel` the size of one in head units.
    """
    who, mouth = shape.who, shape.mouth
    upper, lower = shape.edges(x)
    cover = soft_edge(y - upper, pixel) * soft_edge(lower - y, pixel)
    cover *= soft_edge(np.float32(shape.half_width) - np.abs(x), pixel)
    depth = np.clip((y - upper) / max(shape.gap, 1e-3), 0, 1)
    cavity = np.array([58.0, 16.0, 18.0]) * (0.5 + 0.7 * depth[..., None])
    # The tongue rests on the floor of the mouth and comes up for l, th, t, d, n.
    floor = rest_line(who, np.zeros(1))[0] + 0.55 * shape.gap + shape.drop * 0.3
    tongue_y = floor + 0.1 - (0.05 + 0.55 * shape.gap) * mouth.tongue
    tongue_h = 0.1 + 0.22 * shape.gap
    radius = np.sqrt((x / (who.mouth_width * 0.66)) ** 2 + ((y - tongue_y) / tongue_h) ** 2)
    groove = 1 - 0.12 * np.exp(-((x / 0.025) ** 2))
    bright = (0.62 + 0.5 * np.clip(1 - radius, 0, 1)) * groove * (0.55 + 0.45 * depth)
    tongue = np.array([188.0, 88.0, 86.0]) * bright[..., None]
    colour = cavity + (tongue - cavity) * soft_edge(1 - radius, pixel * 8)[..., None]
    painted = _teeth(shape, x, y, colour, pixel)
    # The lips shade what lies just behind them.
    near = np.exp(-(((y - upper) / 0.035) ** 2)) * 0.45
    near = near + np.exp(-(((lower - y) / 0.03) ** 2)) * 0.25
    # Little light gets in through a narrow gap.
    lit = min(who.exposure, 1.0) * (0.3 + 0.7 * min(1.0, shape.gap / 0.07))
    painted = painted * (lit * (1 - near * cover))[..., None]
    return painted.astype(np.float32), cover


def _teeth(
    shape: PosedMouth, x: FloatArray, y: FloatArray, colour: NDArray[np.floating], pixel: float
) -> NDArray[np.floating]:
    """Paint the upper row, which stays with the skull, and the lower, which goes with the jaw."""
    who = shape.who
    u = x / shape.half_width
    line = rest_line(who, np.zeros(1))[0]
    arch = 1 - 0.3 * np.minimum(u * u, 1)
    tooth = np.abs(np.sin(np.pi * (x / 0.088)))  # one tooth is 0.088 wide
    gaps = 1 - 0.14 * np.exp(-((tooth / 0.16) ** 2)) * min(1.0, 0.012 / pixel)
    bright = (0.97 - 0.4 * np.minimum(np.abs(u), 1) ** 2) * gaps
    white = np.array(who.teeth) * bright[..., None]
    shown = (0.055 + 0.12 * min(shape.gap, 0.15)) * (1 - 0.75 * shape.mouth.round)
    crown = line + shown * arch - 0.004 * (1 - tooth)
    rows = soft_edge(crown - y, pixel)
    jaw = line + shape.drop * 0.55 + 0.5 * shape.gap
    together = max(0.0, 1 - shape.gap / 0.12)  # for s and z the rows nearly touch
    root = jaw + 0.03 - 0.09 * together + 0.05 * u * u + 0.004 * (1 - tooth)
    lower_row = soft_edge(y - root, pixel) * (1 - rows)
    colour = colour + (white * 0.86 - colour) * (lower_row * 0.9)[..., None]
    return colour + (white - colour) * rows[..., None]
