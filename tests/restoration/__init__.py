"""Restoration nets of random numbers, by spandrel: `make test-all` runs these in .venv-restore.

Spandrel needs torchvision, of which the registry has a build for CUDA; beside a torch for the CPU
it can't be imported, for its operators can't be loaded. Spandrel's nets use none of them, and their
names are enough for the import; only here, for what imports torchvision later would miss them.
"""

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)
LIBRARIES = []  # alive as long as what they define

try:
    import torchvision  # noqa: F401
except RuntimeError:
    LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
    for schema in SCHEMAS:
        LIBRARIES[0].define(schema)
except ImportError:
    pass  # conftest.py says what becomes of that
