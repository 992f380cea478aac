"""The fixed mask of the face crop: which pixels are kept and which the network draws anew.

One picture serves every face and every published model. It is given here by the spans of its
black pixels, read off
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/mask.png
"""

import cv2
import numpy as np

from latentsync.types import FloatArray

__all__ = ["keep_mask", "paste_share", "restored_share"]

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
# meets the hole on the cheeks, and ends above the brows, before the hair of most.
FACE_CENTRE, FACE_AXES = (0.5, 0.5), (0.47, 0.49)
MAX_SOFTNESS = 0.1  # of the crop's side; lips lie deeper in the hole and are fully restored


def keep_mask(resolution: int) -> FloatArray:
    """(resolution, resolution) float32 in [0, 1]: 1 keeps the pixel, 0 has it drawn anew.

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
    """(resolution, resolution) float32 in [0, 1]: what is laid on the frame if only the mouth is.

    The hole of `keep_mask` with a soft edge, so that neither a line nor a change of sharpness or
    tint shows there. Pixels on either side of the edge fit: outside the hole the crop has the
    frame's own.
    """
    hole = 1 - keep_mask(resolution)
    return np.asarray(cv2.GaussianBlur(hole, (0, 0), resolution * PASTE_EDGE), dtype=np.float32)


def restored_share(resolution: int, softness: float, *, whole: bool) -> FloatArray:
    """(resolution, resolution) float32 in [0, 1]: how much of a restored face is laid on.

    Args:
        softness: 0-1; the share grows from the region's border inwards, over a tenth of the
            side at 1, at once at 0. Outside it is 0 always.
        whole: the face from above the brows to the chin; or the hole of `keep_mask` alone.
    """
    region = np.asarray(keep_mask(resolution) < 0.5, np.uint8)
    if whole:
        centre, axes = (
            tuple(round(part * resolution) for part in pair) for pair in (FACE_CENTRE, FACE_AXES)
        )
        cv2.ellipse(region, centre, axes, 0, 180, 360, 1, cv2.FILLED)
    inwards = cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.clip(inwards / max(1, softness * MAX_SOFTNESS * resolution), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)  # without a kink at either end
