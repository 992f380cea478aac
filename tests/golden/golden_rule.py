"""Deterministic numbers for golden tests.  Only numpy; no random-number library, so the values
cannot change with a numpy / torch release.

    unit(shape, seed, tag)   float64 array, uniform on [-sqrt(3), sqrt(3)), mean 0, variance 1
    image(shape, seed, tag)  uint8 array, smooth + texture, for synthetic video frames
    wave(n, seed)            float32 mono waveform in [-0.6, 0.6], already exact in 16-bit PCM
    fill(shapes, seed)       {key: float32 array} - the weight rule used for every golden model

Weight rule (`fill`), for a state_dict key k of shape s:
  * skipped (keep what the model's constructor computed): keys ending in ".pe",
    "num_batches_tracked", and "encoder.positional_embedding" (sinusoid buffers)
  * "...running_mean": 0.1*u          "...running_var": 1 + 0.2*|u|
  * len(s) >= 2: g * u / sqrt(fan_in), fan_in = prod(s[1:]); g = 1.5 when the key contains
    ".to_q." ".to_k." ".query." ".key.", else 1.0
  * len(s) == 1 and key ends in "bias": 0.1*u
  * len(s) == 1 otherwise (norm scales): 1 + 0.1*u
with u = unit(s, seed, k).  Zero-initialised layers (conv_in, conv_out, motion modules' proj_out)
are overwritten by the same rule.
"""

import math
import zlib
import numpy as np

_M = np.uint64(0xFFFFFFFFFFFFFFFF)


def _mix(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def unit(shape, seed, tag):
    """Counter-based splitmix64; element i depends only on (seed, tag, i)."""
    n = int(math.prod(shape))
    key = (
        int(seed) * 0x9E3779B97F4A7C15 + zlib.crc32(tag.encode("utf-8")) * 0xD1B54A32D192ED03
    ) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(
            np.array([key], np.uint64)
        )
    u = (_mix(z) >> np.uint64(11)).astype(np.float64) * (2.0**-53)  # [0, 1)
    return ((2.0 * u - 1.0) * math.sqrt(3.0)).reshape(shape)


def f32(shape, seed, tag, scale=1.0):
    return (unit(shape, seed, tag) * scale).astype(np.float32)


def fill(shapes, seed):
    out = {}
    for k in sorted(shapes):
        s = tuple(shapes[k])
        if (
            k.endswith(".pe")
            or k.endswith("num_batches_tracked")
            or k.endswith("encoder.positional_embedding")
        ):
            continue
        u = unit(s, seed, k)
        if k.endswith("running_mean"):
            v = 0.1 * u
        elif k.endswith("running_var"):
            v = 1.0 + 0.2 * np.abs(u)
        elif len(s) >= 2:
            g = 1.5 if any(p in k for p in (".to_q.", ".to_k.", ".query.", ".key.")) else 1.0
            v = g * u / math.sqrt(math.prod(s[1:]))
        elif k.endswith("bias"):
            v = 0.1 * u
        else:
            v = 1.0 + 0.1 * u
        out[k] = v.astype(np.float32)
    return out


def image(h, w, seed, tag="img"):
    """(h, w, 3) uint8: a coarse 9x9 random grid, integer-bilinearly enlarged, plus +-12 of texture."""
    g = (
        np.floor(
            (unit((9, 9, 3), seed, tag + "/grid") / math.sqrt(3.0) + 1.0) * 0.5 * 200.0
        ).astype(np.int64)
        + 20
    )

    def axis(n):
        p = np.arange(n, dtype=np.int64) * 8 * 256 // max(n - 1, 1)
        i = np.minimum(p // 256, 7)
        return i, p - i * 256

    iy, fy = axis(h)
    ix, fx = axis(w)
    fy = fy[:, None, None]
    fx = fx[None, :, None]
    a = g[iy][:, ix] * (256 - fx) + g[iy][:, ix + 1] * fx
    b = g[iy + 1][:, ix] * (256 - fx) + g[iy + 1][:, ix + 1] * fx
    v = (a * (256 - fy) + b * fy) // 65536
    t = np.floor(unit((h, w, 3), seed, tag + "/tex") / math.sqrt(3.0) * 12.0).astype(np.int64)
    return np.clip(v + t, 0, 255).astype(np.uint8)


def wave(n, seed):
    """float32 waveform, multiples of 1/32768 (exact through a 16-bit wav file)."""
    t = np.arange(n, dtype=np.int64)
    x = np.zeros(n, dtype=np.float64)
    for k, (period, amp) in enumerate([(73, 0.22), (31, 0.13), (11, 0.08), (401, 0.1)]):
        ph = (t * (7 + 2 * k) % (period * 8)) / float(period * 8)
        x += amp * (1.0 - 4.0 * np.abs(ph - 0.5))  # triangle waves
    env = 0.5 + 0.5 * (1.0 - 4.0 * np.abs(((t % 9600) / 9600.0) - 0.5)) * 0.5
    x = x * env + 0.05 * unit((n,), seed, "wave") / math.sqrt(3.0)
    q = np.clip(np.round(x * 32768.0), -32768, 32767)
    return (q / 32768.0).astype(np.float32)


def landmarks106(i, h, w, seed):
    """(106, 2) int64 landmarks for frame i: a loose face in the middle of an h x w frame, with jitter."""
    base = unit((106, 2), seed, "lmk/base")
    pts = np.stack([w * 0.5 + base[:, 0] * w * 0.09, h * 0.52 + base[:, 1] * h * 0.14], 1)
    s = min(h, w)
    cx, cy = w * 0.5 + 0.01 * w * (i % 7 - 3), h * 0.5 + 0.008 * h * (i % 5 - 2)
    tilt = 0.03 * (i % 9 - 4)

    def put(idx, dx, dy):
        for n, j in enumerate(idx):
            ox = (n - (len(idx) - 1) / 2) * 0.03 * s
            x, y = dx * s + ox, dy * s
            pts[j] = (
                cx + x * math.cos(tilt) - y * math.sin(tilt),
                cy + x * math.sin(tilt) + y * math.cos(tilt),
            )

    put([43, 48, 49, 51, 50], -0.13, -0.11)
    put([101, 102, 103, 104, 105], 0.13, -0.11)
    put([74, 77, 83, 86], 0.0, 0.06)
    pts += unit((106, 2), seed, f"lmk/jit{i}") * 0.004 * s
    return np.floor(pts + 0.5).astype(np.int64)
