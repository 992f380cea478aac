"""Masks of the face crop: what the network redraws, what is pasted, where a turned face ends.

One fixed mask serves every face and every published model. It is given here by the spans of its
black pixels, read off
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/mask.png
"""

import cv2
import numpy as np

from latentsync.faces.align import BOX_HEIGHT, BOX_WIDTH
from latentsync.types import FloatArray

__all__ = ["keep_mask", "outline_edge", "outline_share", "paste_share", "restored_share"]

SIDE = 256  # px, the published picture
CHEEK_ROWS = (95, 128)  # beside the nose: black on both cheeks
CHEEKS = ((9, 77), (178, 246))  # first and last black column
# From row 128 to 242 one black span a row, "row:first-last", given where it changes.
MOUTH = """
128:9-247 135:9-246 136:10-246 149:10-245 150:11-245 163:11-244 164:12-244 170:12-243
171:13-243 172:13-242 173:14-242 174:14-241 175:15-241 176:15-240 177:16-240 178:16-239
179:17-238 180:18-238 181:18-237 182:19-236 184:20-235 185:21-234 187:22-233 188:22-232
189:23-232 190:24-231 191:25-230 192:26-230 193:26-229 194:27-228 195:28-228 196:29-227
197:30-226 198:31-225 199:32-224 200:33-223 201:34-223 202:34-222 203:35-221 204:36-220
205:37-219 206:38-218 207:39-217 208:40-216 209:42-215 210:43-214 211:44-213 212:45-212
213:47-211 214:48-210 215:49-208 216:51-207 217:52-206 218:54-204 219:56-203 220:57-202
221:59-200 222:60-199 223:62-197 224:64-196 225:66-194 226:68-192 227:70-191 228:72-189
229:74-187 230:76-185 231:78-183 232:80-180 233:82-178 234:85-175 235:87-173 236:90-171
237:93-168 238:95-166 239:99-164 240:104-160 241:108-156 242:131-152
"""
LAST_ROW = 242
PASTE_EDGE = 0.025  # of the crop's side, standard deviation of the soft edge
# The face above the mouth, in shares of the crop's side: an ellipse's centre and half axes. It
# meets the hole on the cheeks and ends above the brows, below most people's hair.
FACE_CENTRE, FACE_AXES = (0.5, 0.5), (0.47, 0.49)
MAX_SOFTNESS = 0.1  # of the crop's side; lips lie deeper in the hole and are fully restored

# A face's edge on the averted side: x in units of `align.TEMPLATE`, by the place of the nose base,
# a beside the middle of the brows and d below it. Factors of 1, u, u u, a, a u, a a, d, d u, d a,
# d d, where u is (y - 60) / 30. Fitted to drawn heads turned by up to 40 degrees and to heads of
# MakeHuman's mesh (CC0) turned by up to 60; off by 3.6 RMS: `benchmarks/paste.py --fit`.
EDGE = (114.2, -9.2, -6.7, -33.5, 8.1, 8.3, -77.0, -4.1, 15.8, 18.2)
FIRST_ROW, LAST_EDGE_ROW = 30.0, 80.0  # of the template; beyond, the edge is vertical
# Units by which the edge is moved outwards: the fit's error; more for faces turned far, whose mouth
# corner is near the edge.
MARGIN, MARGIN_GROWTH, MARGIN_FROM, MAX_MARGIN = 4.0, 8.0, 0.25, 7.0
EDGE_WIDTH = 6.0  # units over which the paste fades out
# The nose's place aside, in distances of the brows. Up to FRONTAL (5 degrees) the edge is ignored,
# so that a frontal face keeps all of its paste; from TURNED (15 degrees) on it counts fully.
FRONTAL, TURNED = 0.035, 0.1


def keep_mask(resolution: int) -> FloatArray:
    """Return (resolution, resolution) float32 in [0, 1]: 1 keeps the pixel, 0 has it redrawn.

    At 256 px only 0 and 1 occur; other sizes are a Lanczos resize of that picture, as published.
    """
    picture = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    for first, last in CHEEKS:
        picture[slice(*CHEEK_ROWS), first : last + 1] = 0
    changes = [[int(n) for n in item.replace("-", ":").split(":")] for item in MOUTH.split()]
    ends = [row for row, _, _ in changes[1:]] + [LAST_ROW + 1]
    for (row, first, last), end in zip(changes, ends, strict=True):
        picture[row:end, first : last + 1] = 0
    if resolution != SIDE:
        size = (resolution, resolution)
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4))
    return picture.astype(np.float32) / np.float32(255)


def paste_share(resolution: int) -> FloatArray:
    """Return the weight of a paste of the mouth alone; (resolution, resolution) float32 in [0, 1].

    It is the hole of `keep_mask` with a soft edge, which hides changes of sharpness and tint. Both
    sides of the edge fit, because outside the hole the crop has the frame's own pixels.
    """
    hole = 1 - keep_mask(resolution)
    return np.asarray(cv2.GaussianBlur(hole, (0, 0), resolution * PASTE_EDGE), dtype=np.float32)


def restored_share(resolution: int, softness: float, *, whole: bool) -> FloatArray:
    """Return the weight of a restored face; (resolution, resolution) float32 in [0, 1].

    Args:
        softness: 0-1; the weight grows from the region's border inwards, over a tenth of the side
            at 1, at once at 0. Outside it is 0.
        whole: the region is the face from above the brows to the chin, else the hole of
            `keep_mask` alone.
    """
    region = np.asarray(keep_mask(resolution) < 0.5, np.uint8)
    if whole:
        centre, axes = (
            tuple(round(part * resolution) for part in pair) for pair in (FACE_CENTRE, FACE_AXES)
        )
        cv2.ellipse(region, centre, axes, 0, 180, 360, 1, cv2.FILLED)
    inwards = cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return _smoothstep(inwards / max(1, softness * MAX_SOFTNESS * resolution))


def outline_edge(aside: float, below: float, rows: FloatArray) -> FloatArray:
    """Compute the edge of a face turned to the right: (n,) x at the rows' y (n,), TEMPLATE units.

    Args:
        aside, below: the nose base from the middle of the brows, in distances of the brows.
    """
    u = (np.clip(rows, FIRST_ROW, LAST_EDGE_ROW) - 60) / 30
    a, d = abs(aside), below
    one = np.ones_like(u)
    terms = (one, u, u * u, a * one, a * u, a * a * one, d * one, d * u, d * a * one, d * d * one)
    return np.asarray(np.array(EDGE) @ np.stack(terms), np.float32)


def outline_share(aside: float, below: float, resolution: int) -> FloatArray | None:
    """Return (resolution, resolution) float32 in [0, 1]: 0 beyond the edge on the averted side.

    So no mouth is pasted on hair or wall. None where all of it is 1: a frontal face, or an unknown
    turn.
    """
    if not abs(aside) > FRONTAL or not np.isfinite(below):
        return None
    y, x = (
        ((np.arange(resolution) + 0.5) / resolution * size).astype(np.float32)
        for size in (BOX_HEIGHT, BOX_WIDTH)
    )
    margin = MARGIN + MARGIN_GROWTH * max(0.0, abs(aside) - MARGIN_FROM)
    edge = outline_edge(aside, below, y) + np.float32(min(margin, MAX_MARGIN))
    away = (x[None, :] - edge[:, None]).astype(np.float32)
    beyond = _smoothstep(away / np.float32(EDGE_WIDTH) + np.float32(0.5))
    counted = np.float32((abs(aside) - FRONTAL) / (TURNED - FRONTAL))
    share = 1 - beyond * _smoothstep(np.full(1, counted))
    return np.ascontiguousarray(share if aside > 0 else share[:, ::-1], np.float32)


def _smoothstep(share: FloatArray) -> FloatArray:
    """Map 0-1 to 0-1 without a kink at either end; clipped beyond."""
    t = np.clip(share, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
