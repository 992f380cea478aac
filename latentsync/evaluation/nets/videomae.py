"""VideoMAE V2, and TREPA, the training loss on motion that is computed with it.

TREPA, temporal representation alignment: https://arxiv.org/abs/2412.09262, section 3.4, as in
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/trepa/loss.py. The net is ViT-g/14
of https://arxiv.org/abs/2303.16727, fine-tuned on Something-Something V2
(`vit_g_hybrid_pt_1200e_ssv2_ft.pth`). Transformers lacks only its last norm.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import VideoMAEConfig, VideoMAEModel

__all__ = ["VideoMAE", "renamed", "trepa_loss"]

UNUSED = ("head.weight", "head.bias")  # the classifier of 174 actions
ATTENTION = "attention.attention."
NAMES = (  # part of a published key -> part of ours, in this order
    ("patch_embed.proj.", "model.embeddings.patch_embeddings.projection."),
    ("blocks.", "model.encoder.layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.q_bias", f".{ATTENTION}query.bias"),
    (".attn.v_bias", f".{ATTENTION}value.bias"),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def giant() -> VideoMAEConfig:
    """The configuration of the published ViT-g/14, 1.01 G parameters."""
    return VideoMAEConfig(
        image_size=224,
        patch_size=14,
        num_frames=16,
        tubelet_size=2,
        hidden_size=1408,
        num_hidden_layers=40,
        num_attention_heads=16,
        intermediate_size=6144,
        layer_norm_eps=1e-6,
    )


class VideoMAE(nn.Module):
    """Frozen: gradients reach the video only. Train and eval mode are the same."""

    def __init__(self, config: VideoMAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or giant()
        self.checkpointing = False
        self.model = VideoMAEModel(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """(b, 3, 16, 224, 224) RGB in [0, 1] -> (b, 1408): the mean over all tokens, normed."""
        x = self.model.embeddings(video.to(self.fc_norm.weight.dtype).transpose(1, 2), None)
        # Transformers checkpoints in train mode only, so the layers are called one by one here.
        for layer in self.model.encoder.layer:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.fc_norm(x.mean(1))

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Trade compute for memory in training: keep only each layer's input."""
        self.checkpointing = enabled


def trepa_loss(net: VideoMAE, video: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the normalised features of two videos.

    It is small, at most 4 / 1408: its published weight is 10.

    Args:
        video, target: (b, 3, 16, h, w) RGB in [-1, 1]; resized to the net's side, bicubically and
            without antialiasing as published.

    Returns:
        0-d, float32.

    Raises:
        ValueError: another number of frames than the net's.
    """
    if video.shape[2] != net.config.num_frames:
        raise ValueError(f"a video has {video.shape[2]} frames; it needs {net.config.num_frames}")
    frames, side = video.shape[2], net.config.image_size
    features: list[Tensor] = []
    for x in (video, target):
        flat = F.interpolate(x.transpose(1, 2).flatten(0, 1), size=(side, side), mode="bicubic")
        resized = (flat.unflatten(0, (-1, frames)).transpose(1, 2) / 2 + 0.5).clamp(0, 1)
        features.append(F.normalize(net(resized).float()))
    return F.mse_loss(features[0], features[1])


def renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published checkpoint as in `VideoMAE`.

    Its one matrix of query, key and value is split, its classifier is left out.
    """
    state = {}
    for key, value in published.items():
        if key in UNUSED:
            continue
        name = key
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        if name.endswith(".attn.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=False):
                state[name.replace("attn.qkv", ATTENTION + part)] = rows
        else:
            state[name] = value
    return state
