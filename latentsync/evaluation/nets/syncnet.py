"""StableSyncNet, which supervises lip-sync in training: 16 frames and their sound.

Both become unit vectors, whose cosine is the probability that they belong together. Attribute names
are the keys of the published `stable_syncnet.pt`; layers as in
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/models/stable_syncnet.py, the idea
in https://arxiv.org/abs/2412.09262, section 3.3.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.diffusion.attention import Attention, FeedForward

__all__ = [
    "SYNCNETS",
    "StableSyncNet",
    "SyncNetConfig",
    "SyncNetTower",
    "accuracies",
    "cosine_loss",
    "stacked",
]


@dataclass(frozen=True)
class SyncNetTower:
    """One of the two halves of a SyncNet: residual blocks that reduce the input to 1 x 1."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]  # of each block: height, width
    attention: tuple[int, ...] = ()  # indices of the blocks followed by attention


@dataclass(frozen=True)
class SyncNetConfig:
    """Size and input of StableSyncNet; the defaults are the published stable_syncnet.pt.

    Four sizes were published, `SYNCNETS`:
    https://github.com/bytedance/LatentSync/tree/a229c39/configs/syncnet
    """

    visual: SyncNetTower = SyncNetTower(
        in_channels=48,  # 16 RGB frames
        block_out_channels=(64, 128, 256, 256, 512, 1024, 2048, 2048),
        strides=((1, 2), *[(2, 2)] * 7),
        attention=(4, 5),
    )
    audio: SyncNetTower = SyncNetTower(
        in_channels=1,
        block_out_channels=(32, 64, 128, 256, 512, 1024, 2048),
        strides=((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3)),
        attention=(3, 4),
    )
    frames: int = 16  # of a window, at 25 fps
    side: int = 256  # of the square input: px, or cells of latents
    lower_half: bool = True  # use only this half of it
    latent: bool = False  # the input is the VAE's latents, not pixels


_PIXEL_ATTN = SyncNetConfig()
SYNCNETS: dict[str, SyncNetConfig] = {
    "pixel_attn": _PIXEL_ATTN,
    "pixel": replace(
        _PIXEL_ATTN,
        visual=replace(_PIXEL_ATTN.visual, attention=()),
        audio=replace(_PIXEL_ATTN.audio, attention=()),
    ),
    "latent": SyncNetConfig(
        visual=SyncNetTower(
            in_channels=64,  # 16 frames of 4
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2)),
        ),
        audio=SyncNetTower(
            in_channels=1,
            block_out_channels=(32, 64, 128, 256, 512, 1024),
            strides=((2, 1), *[(2, 2)] * 4, (2, 3)),
        ),
        side=32,
        lower_half=False,
        latent=True,
    ),
    # syncnet_25_pixel.yaml names no attention, although the published code requires it; no weights
    # of this size were published.
    "25_pixel": SyncNetConfig(
        visual=SyncNetTower(
            in_channels=75,  # 25 RGB frames
            block_out_channels=(128, 128, 256, 256, 512, 512, 1024, 1024),
            strides=((1, 2), *[(2, 2)] * 7),
        ),
        audio=SyncNetTower(
            in_channels=1,  # (80, 80)
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2),) * 6,
        ),
        frames=25,
    ),
}


GROUPS = 32
EPS = 1e-6  # of every GroupNorm
HEADS = 8
IN_SYNC = 0.5  # cosine, that is the probability that both belong together


class StableSyncNet(nn.Module):
    """Two towers of residual blocks; nothing in it depends on train or eval mode."""

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SyncNetConfig()
        self.audio_encoder = Tower(config.audio)
        self.visual_encoder = Tower(config.visual)

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Embed frames and sound; gradients reach both.

        Args:
            frames: (b, 48, 128, 256) in [-1, 1], or (b, 64, 32, 32) latents, as `stacked` gives.
            mel: (b, 1, 80, 52), as `latentsync.evaluation.nets.syncnet_mel.sync_window` gives.

        Returns:
            Two times (b, width): of the frames and of the sound, each of length 1.
        """
        return self.visual_encoder(frames), self.audio_encoder(mel)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Trade compute for memory in training: keep only each block's input."""
        self.audio_encoder.checkpointing = self.visual_encoder.checkpointing = enabled


def stacked(video: Tensor, config: SyncNetConfig) -> Tensor:
    """Stack a video's frames, their lower halves, as channels for the visual tower.

    Frames of another side than the net's are resized first, bicubically and without antialiasing,
    as published, https://github.com/bytedance/LatentSync/blob/a229c39/scripts/train_unet.py.

    Args:
        video: (b, c, f, h, w): 3 channels in [-1, 1], or the VAE's scaled latents.

    Returns:
        (b, f * c, side / 2, side), or (b, f * c, side, side) without `lower_half`.

    Raises:
        ValueError: the net was made for another number of frames, or for latents of another side.
    """
    channels, frames, height, width = video.shape[1:]
    side = config.side
    if frames * channels != config.visual.in_channels:
        raise ValueError(
            f"a video has {frames} frames of {channels} channels; "
            f"together they must be the {config.visual.in_channels} that the SyncNet takes"
        )
    x = video.transpose(1, 2).flatten(1, 2)
    if (height, width) != (side, side):
        if config.latent:
            raise ValueError(f"latents are {height}x{width}; the SyncNet takes {side}x{side}")
        x = F.interpolate(x, size=(side, side), mode="bicubic")
    return x[:, :, side // 2 :] if config.lower_half else x


def cosine_loss(visual: Tensor, audio: Tensor, in_sync: Tensor | None = None) -> Tensor:
    """Cross-entropy (b,) of the cosines of two (b, width) embeddings; call it outside autocast.

    Args:
        in_sync: (b,) 1 where frames and sound belong together, else 0; None: all do.
    """
    cosine = F.cosine_similarity(visual.float(), audio.float())
    cosine = cosine.clamp(0, 1)  # rounding may exceed 1, which binary_cross_entropy refuses
    target = torch.ones_like(cosine) if in_sync is None else in_sync.to(cosine)
    return F.binary_cross_entropy(cosine, target, reduction="none")


def accuracies(cosines: Tensor, in_sync: Tensor) -> tuple[float, float]:
    """Share of (n,) pairs classified correctly by a threshold of 0.5, and by the best threshold."""
    right = ((cosines > IN_SYNC) == in_sync).float().mean().item()
    thresholds = torch.cat([cosines.min()[None] - 1, cosines])
    best = ((cosines > thresholds[:, None]) == in_sync).float().mean(1).max().item()
    return right, best


class Tower(nn.Module):
    """Residual blocks, some followed by attention; (b, in_channels, h, w) -> (b, width)."""

    def __init__(self, config: SyncNetTower) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.checkpointing = False
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (width, stride) in enumerate(zip(widths, config.strides, strict=True)):
            self.down_blocks.append(ResidualBlock(widths[max(i - 1, 0)], width, stride))
            if i in config.attention:
                self.down_blocks.append(AttentionBlock(width))
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return F.normalize(F.relu(self.norm_out(x)).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual, then a strided third one if there is a stride."""

    def __init__(self, before: int, width: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, before, EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.conv_shortcut = nn.Conv2d(before, width, 1)
        if stride != (1, 1):
            self.downsample_conv = nn.Conv2d(width, width, 3, stride)
            # left, right, top, bottom; an axis without stride is padded on both sides
            self.padding = (int(stride[1] == 1), 1, int(stride[0] == 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        h = h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)
        if hasattr(self, "downsample_conv"):
            h = self.downsample_conv(F.pad(h, self.padding))
        return h


class AttentionBlock(nn.Module):
    """Self-attention over all positions and a feed-forward net, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width, EPS)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.conv_in = nn.Conv2d(width, width, 1)
        self.conv_out = nn.Conv2d(width, width, 1)
        self.attn = BiasedAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)  # (b, h * w, width)
        normed = self.norm2(h)
        h = h + self.attn(normed, normed)
        h = h + self.ff(self.norm3(h))
        return x + self.conv_out(h.transpose(1, 2).reshape(x.shape))


class BiasedAttention(Attention):
    """The U-Net's attention, except that queries, keys and values have a bias here."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, HEADS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
