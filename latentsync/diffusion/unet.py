"""Video U-Net: Stable Diffusion 1.5's layout with cross-attention to speech and motion modules.

Attribute names are the published checkpoints' keys, so every load is strict. Frames are part of
the batch dimension, `(batch * frames, channels, height, width)`; two modules mix frames:

    FrameSharedGroupNorm   statistics over all frames of a group (all resnets, and the output)
    MotionModule           self-attention along time at each pixel

Structure and constants: LatentSync, https://arxiv.org/abs/2412.09262 and
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/models/unet.py; Stable Diffusion,
https://arxiv.org/abs/2112.10752; motion modules, AnimateDiff, https://arxiv.org/abs/2307.04725.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.diffusion.attention import (
    MAX_PERIOD,
    Attention,
    FeedForward,
    TemporalAttention,
    to_grid,
    to_tokens,
)

__all__ = ["FeatureCache", "UNet", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """Size of the U-Net; the defaults are the published stage 2, of 1.27 G parameters.

    Channels and shapes: https://github.com/bytedance/LatentSync/blob/a229c39/configs/unet/stage2.yaml
    """

    in_channels: int = 13  # noisy 4, mask 1, masked 4, reference 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_heads: int = 8  # the published config calls this number attention_head_dim
    cross_attention_dim: int = 384  # width of a state of Whisper tiny
    norm_num_groups: int = 32
    motion: Literal["none", "all", "decoder"] = "all"  # which blocks have motion modules
    motion_heads: int = 8
    motion_norm_groups: int = 32
    motion_max_frames: int = 24  # length of the temporal position table
    speech_positions: int = 0  # tokens, see `SpeechPositions`; 0, as published: no such module


RESNET_EPS = 1e-5
TRANSFORMER_EPS = 1e-6  # of the GroupNorm before a transformer, as in Stable Diffusion


@dataclass
class FeatureCache:
    """Deep features of one denoising step, reused by the next ones, where they change little.

    This is DeepCache, https://arxiv.org/abs/2312.00858, at its outermost branch: a step that finds
    features here runs only conv_in, the last layer of the last up block, and conv_out.
    """

    features: Tensor | None = None  # (b * f, c, h, w), input of that layer; None: run all layers

    def prepare(self, rows: int, *, full: bool) -> None:
        """Prepare for a step over `rows` (b * f): keep the features unless the step is a full one.

        When guidance ends, the last rows are kept, those with speech; when it begins, none are.
        """
        if full or (self.features is not None and len(self.features) < rows):
            self.features = None
        if self.features is not None:
            self.features = self.features[-rows:]


class UNet(nn.Module):
    """Net that predicts the noise in a group of latent frames, given a timestep and speech."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        widths = config.block_out_channels
        time_dim = 4 * widths[0]
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        if config.speech_positions:
            self.speech_positions = SpeechPositions(config)
        self.time_embedding = TimeEmbedding(widths[0], time_dim)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                config,
                widths[max(i - 1, 0)],
                width,
                time_dim,
                attention=i < last,
                downsample=i < last,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(config, widths[-1], time_dim)
        # The up blocks take the down blocks' outputs in reverse: one of each layer and downsampler.
        skips = [widths[0]]
        for i, width in enumerate(widths):
            skips += [width] * (config.layers_per_block + (i < last))
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(widths)):
            block_skips = [skips.pop() for _ in range(config.layers_per_block + 1)]
            before = widths[min(last - i + 1, last)]
            self.up_blocks.append(
                UpBlock(
                    config,
                    before,
                    width,
                    block_skips,
                    time_dim,
                    attention=i > 0,
                    upsample=i < last,
                )
            )
        self.conv_norm_out = FrameSharedGroupNorm(config.norm_num_groups, widths[0], RESNET_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]  # the stub says optional

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        audio: Tensor | None,
        cache: FeatureCache | None = None,
    ) -> Tensor:
        """Predict noise.

        Args:
            sample: (b, 13, f, h, w) latents, h and w multiples of 2 per downsampler (8).
            timestep: 0-d, (1,) or (b,), in [0, 1000).
            audio: (b * f, tokens, width) or (b, f, tokens, width); None: no cross-attention.
            cache: features of an earlier step, which are used, or an empty one, which is filled.

        Returns:
            (b, 4, f, h, w), of the sample's dtype.
        """
        batch, _, frames, height, width = sample.shape
        stride = 2 ** (len(self.config.block_out_channels) - 1)
        if height % stride or width % stride:
            raise ValueError(f"latents are {height}x{width}; both must be multiples of {stride}")
        if self.config.motion != "none" and frames > self.config.motion_max_frames:
            raise ValueError(
                f"a group has {frames} frames; at most {self.config.motion_max_frames} fit"
            )
        if audio is not None and audio.dim() == 4:
            audio = audio.flatten(0, 1)
        if audio is not None and self.config.speech_positions:
            audio = self.speech_positions(audio)
        time = self.time_embedding(timestep_sinusoid(timestep, batch, self.conv_in.out_channels))
        time = time.repeat_interleave(frames, dim=0)  # (b * f, time_dim)

        x = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        skips = [x]
        *up_blocks, last = self.up_blocks
        if cache is None or cache.features is None:
            for block in self.down_blocks:
                x = block(x, time, audio, frames, skips)
            x = self.mid_block(x, time, audio, frames)
            for block in up_blocks:
                x = block(x, time, audio, frames, skips)
        x = last(x, time, audio, frames, skips, cache)
        x = self.conv_out(F.silu(self.conv_norm_out(x, frames)))
        return x.unflatten(0, (batch, frames)).transpose(1, 2)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Save memory in training: keep only each layer's input, and compute the rest again."""
        for module in self.modules():
            if isinstance(module, _Block):
                module.checkpointing = enabled

    def set_attention(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Use `attend` in every attention; see `attention.attention_backend`."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend


class SpeechPositions(nn.Module):
    """Layer norm and learned positions of the speech tokens, for nets as small as the demo's.

    Not in the published nets. Zeros, which stand for "no speech", become the positions alone.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.cross_attention_dim)
        shape = (config.speech_positions, config.cross_attention_dim)
        self.table = nn.Parameter(0.1 * torch.randn(shape))

    def forward(self, audio: Tensor) -> Tensor:
        return self.norm(audio) + self.table


class _Block(nn.Module):
    """Layers of (resnet, attention, motion module); the last two are optional."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList
    motion_modules: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False

    def _layer(self, i: int, x: Tensor, time: Tensor, audio: Tensor | None, frames: int) -> Tensor:
        x = self._run(self.resnets[i], x, time, frames)
        if i < len(self.attentions):
            x = self._run(self.attentions[i], x, audio)
        if i < len(self.motion_modules):
            x = self._run(self.motion_modules[i], x, frames)
        return x

    def _run(self, module: nn.Module, *args: Any) -> Tensor:  # noqa: ANN401 - tensors and ints
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(module, *args, use_reentrant=False)
        else:
            out = module(*args)
        return out


class DownBlock(_Block):
    """`layers_per_block` layers, then a downsampler that halves the side."""

    def __init__(
        self,
        config: UNetConfig,
        before: int,
        width: int,
        time_dim: int,
        *,
        attention: bool,
        downsample: bool,
    ) -> None:
        super().__init__()
        layers = range(config.layers_per_block)
        self.resnets = nn.ModuleList(
            Resnet(config, before if i == 0 else width, width, time_dim) for i in layers
        )
        self.attentions = nn.ModuleList(Transformer(config, width) for _ in layers if attention)
        self.motion_modules = nn.ModuleList(
            MotionModule(config, width) for _ in layers if config.motion == "all"
        )
        self.downsamplers = nn.ModuleList([Downsample(width)] if downsample else [])

    def forward(
        self, x: Tensor, time: Tensor, audio: Tensor | None, frames: int, skips: list[Tensor]
    ) -> Tensor:
        for i in range(len(self.resnets)):
            x = self._layer(i, x, time, audio, frames)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(_Block):
    """Resnet, attention and resnet at the smallest side, without motion modules."""

    def __init__(self, config: UNetConfig, width: int, time_dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(config, width, width, time_dim) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(config, width)])
        self.motion_modules = nn.ModuleList()

    def forward(self, x: Tensor, time: Tensor, audio: Tensor | None, frames: int) -> Tensor:
        x = self._layer(0, x, time, audio, frames)
        return self._layer(1, x, time, audio, frames)


class UpBlock(_Block):
    """`layers_per_block + 1` layers with a skip connection each, then an upsampler."""

    def __init__(
        self,
        config: UNetConfig,
        before: int,
        width: int,
        skips: list[int],
        time_dim: int,
        *,
        attention: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            Resnet(config, (before if i == 0 else width) + skip, width, time_dim)
            for i, skip in enumerate(skips)
        )
        self.attentions = nn.ModuleList(Transformer(config, width) for _ in skips if attention)
        self.motion_modules = nn.ModuleList(
            MotionModule(config, width) for _ in skips if config.motion != "none"
        )
        self.upsamplers = nn.ModuleList([Upsample(width)] if upsample else [])

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        audio: Tensor | None,
        frames: int,
        skips: list[Tensor],
        cache: FeatureCache | None = None,
    ) -> Tensor:
        layers = range(len(self.resnets))
        if cache is not None and cache.features is not None:
            x, layers = cache.features, layers[-1:]
        for i in layers:
            if cache is not None and i == layers[-1]:
                cache.features = x
            x = self._layer(i, torch.cat([x, skips.pop()], dim=1), time, audio, frames)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Resnet(nn.Module):
    """Residual block: two 3x3 convolutions, with the timestep's embedding added between them."""

    def __init__(self, config: UNetConfig, before: int, width: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = FrameSharedGroupNorm(config.norm_num_groups, before, RESNET_EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, width)
        self.norm2 = FrameSharedGroupNorm(config.norm_num_groups, width, RESNET_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.conv_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, frames)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h, frames)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Transformer(nn.Module):
    """Self-attention within a frame, then cross-attention to the frame's speech."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, width, TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config, width)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        h = to_tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            h = block(h, audio)
        return x + self.proj_out(to_grid(h, height, width))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to speech, feed-forward; pre-normalised residuals."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, config.attention_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, config.cross_attention_dim, config.attention_heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        if audio is not None:
            x = x + self.attn2(self.norm2(x), audio)
        return x + self.ff(self.norm3(x))


class MotionModule(nn.Module):
    """Self-attention along time at each pixel; the identity at first, as `proj_out` is zero."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(config, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.temporal_transformer(x, frames)


class TemporalTransformer(nn.Module):
    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.motion_norm_groups, width, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(config, width)])
        self.proj_out = nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        height, width = x.shape[-2:]
        h = self.proj_in(to_tokens(self.norm(x))).unflatten(0, (-1, frames))  # (b, f, h*w, c)
        for block in self.transformer_blocks:
            h = block(h)
        return x + to_grid(self.proj_out(h).flatten(0, 1), height, width)


class TemporalBlock(nn.Module):
    """Two self-attentions along time and a feed-forward, on (b, f, pixels, c)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(width, config.motion_heads, config.motion_max_frames)
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class FrameSharedGroupNorm(nn.GroupNorm):
    """GroupNorm with statistics over all frames of a group of frames: (c / num_groups, f, h, w).

    The published net normalises 5-D tensors, so its result depends on how a clip is divided into
    groups of frames. Statistics and scaling are float32, whatever the input's precision.
    """

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        if frames == 1 or x.device.type == "cpu":  # on a CPU, var_mean takes ten times as long
            together = x.float().unflatten(0, (-1, frames)).transpose(1, 2)
            scaling = self.weight.float(), self.bias.float()
            out = F.group_norm(together, self.num_groups, *scaling, self.eps)
            return out.transpose(1, 2).flatten(0, 1).to(x.dtype)
        return self._by_variance(x, frames)

    def _by_variance(self, x: Tensor, frames: int) -> Tensor:
        grouped = x.float().unflatten(0, (-1, frames)).unflatten(2, (self.num_groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3, 4, 5), correction=0)  # (b, groups)
        per_group = self.num_channels // self.num_groups
        scale = torch.rsqrt(variance + self.eps).repeat_interleave(per_group, 1) * self.weight
        shift = self.bias - mean.repeat_interleave(per_group, 1) * scale  # (b, c)
        scale, shift = (t[:, None, :, None, None] for t in (scale, shift))
        return torch.addcmul(shift, x.unflatten(0, (-1, frames)), scale).flatten(0, 1).to(x.dtype)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, time_dim)
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid.to(self.linear_1.weight))))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def timestep_sinusoid(timestep: Tensor | float, batch: int, width: int) -> Tensor:
    """Embed the timestep as cosines, then sines: (batch, width) float32, for an even width."""
    if isinstance(timestep, Tensor):
        t = timestep.float().reshape(-1).expand(batch)
    else:
        t = torch.full((batch,), float(timestep))
    half = torch.arange(width // 2, dtype=torch.float32, device=t.device)
    angle = t[:, None] * torch.exp(half * (-math.log(MAX_PERIOD) / (width // 2)))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
