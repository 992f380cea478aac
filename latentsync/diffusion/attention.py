"""Multi-head attention, its kernels, and the feed-forward net."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.errors import BackendUnavailable, OptionError, option_name

__all__ = [
    "MAX_PERIOD",
    "Attend",
    "Attention",
    "FeedForward",
    "TemporalAttention",
    "attention_backend",
]


def to_tokens(x: Tensor) -> Tensor:
    """Flatten (n, c, h, w) to (n, h * w, c); a view if x is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_grid(x: Tensor, height: int, width: int) -> Tensor:
    """Unflatten (n, h * w, c) to (n, c, h, w), channels_last in memory."""
    return x.transpose(1, 2).unflatten(2, (height, width))


MAX_PERIOD = 10_000.0  # of the sinusoids, in positions; https://arxiv.org/abs/1706.03762

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (n, heads, tokens, head_dim) -> (n, heads, tokens, head_dim)."""


class Attention(nn.Module):
    """Multi-head attention of x to a context; only the output projection has a bias."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.attend: Attend = F.scaled_dot_product_attention

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (n, tokens, width); context: (n, context tokens, context_width)."""
        query, key, value = self.to_q(x), self.to_k(context), self.to_v(context)
        split = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        return self.to_out[0](self.attend(*split).transpose(1, 2).flatten(-2))


class TemporalAttention(Attention):
    """Self-attention over the frames of (b, f, pixels, c), positions added to its input."""

    def __init__(self, width: int, heads: int, max_frames: int) -> None:
        super().__init__(width, width, heads)
        self.pos_encoder = PositionTable(width, max_frames)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is None
        x = x + self.pos_encoder(x.shape[1])[:, :, None]
        # Projected before the transposition: else the projection becomes many small products of
        # copies (at full size in bfloat16 on a CPU, half the time of the whole net).
        split = [
            layer(x).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
            for layer in (self.to_q, self.to_k, self.to_v)
        ]  # (b * pixels, heads, f, head_dim)
        attended = self.attend(*split).unflatten(0, (x.shape[0], -1))
        return self.to_out[0](attended.permute(0, 3, 1, 2, 4).flatten(-2))


class PositionTable(nn.Module):
    """Sinusoidal positions, (1, max_frames, c), in a buffer that published checkpoints contain."""

    pe: Tensor

    def __init__(self, width: int, max_frames: int) -> None:
        super().__init__()
        position = torch.arange(max_frames)[:, None]
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(MAX_PERIOD) / width))
        table = torch.stack([torch.sin(position * frequency), torch.cos(position * frequency)], -1)
        self.register_buffer("pe", table.flatten(1)[None])

    def forward(self, frames: int) -> Tensor:
        return self.pe[:, :frames]


class GEGLU(nn.Module):
    """A linear layer gated by GELU, https://arxiv.org/abs/2002.05202."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity stands for the checkpoint's dropout, so that layers have the same numbers.
        self.net = nn.ModuleList(
            [GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


def attention_backend(name: Literal["native", "xformers"]) -> Attend:
    """Return the attention kernel called `name`: PyTorch's fused one, or that of xformers.

    Raises:
        BackendUnavailable: xformers was asked for and can't be loaded.
        OptionError: an unknown name.
    """
    if name == "native":
        return F.scaled_dot_product_attention
    if name != "xformers":
        raise OptionError(
            f"{option_name('attention')} is {name!r}; it must be 'native' or 'xformers'"
        )
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"attention 'xformers' was asked for, but it can't be loaded ({error}); "
            "install the xformers build made for your torch, or use attention 'native'"
        ) from error

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # xformers wants (n, tokens, heads, head_dim)
        out = memory_efficient_attention(*(t.transpose(1, 2) for t in (query, key, value)))
        return out.transpose(1, 2)

    return attend
