"""Lip-sync by latent diffusion: a clip and a voice in, the same clip speaking that voice out.

import latentsync

model = latentsync.load("v1.6")
result = model.run("face.mp4", "speech.wav", "out.mp4", guidance_scale=1.5, seed=1247)
"""

from typing import TYPE_CHECKING, Any

from latentsync.errors import LatentSyncError
from latentsync.options import Options
from latentsync.types import Progress, Result

if TYPE_CHECKING:
    from latentsync.diffusion.config import ModelConfig
    from latentsync.pipeline.lipsync import LipSync

    load = LipSync.load

__all__ = ["LatentSyncError", "LipSync", "ModelConfig", "Options", "Progress", "Result", "load"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the three names below
    """Load the nets' libraries when they are first wanted: they take seconds, `--help` needn't."""
    if name == "ModelConfig":
        from latentsync.diffusion.config import ModelConfig

        return ModelConfig
    if name not in ("LipSync", "load"):
        raise AttributeError(f"module 'latentsync' has no attribute {name!r}")
    from latentsync.pipeline.lipsync import LipSync

    return LipSync if name == "LipSync" else LipSync.load
