"""SyncNet, which scores lip-sync: "Out of time" (Chung and Zisserman, 2016), as published.

Five frames of a face and 0.2 s of sound each become a vector of 1024 numbers; the smaller their
distance, the better the sync. Attribute names are the keys of the published `syncnet_v2.model`;
layers as in
https://github.com/joonson/syncnet_python/blob/5befaa3/SyncNetModel.py
"""

from torch import Tensor, nn

__all__ = ["EvalSyncNet"]

WIDTH = 512  # channels at the end of each tower


class EvalSyncNet(nn.Module):
    """Two towers. Use it in eval mode, so that a window's result doesn't depend on its batch."""

    def __init__(self, features: int = 1024) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_sound(1, 64, 3, padding=1),
            nn.Identity(),  # in place of a pooling by 1, for the numbering of the keys
            *_sound(64, 192, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_sound(192, 384, 3, padding=1),
            *_sound(384, 256, 3, padding=1),
            *_sound(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            *_sound(256, WIDTH, (5, 4), padding=0),
        )
        self.netfcaud = _head(features)
        self.netfclip = _head(features)
        pool, half = (1, 3, 3), (1, 2, 2)
        around = (0, 1, 1)  # padding of the picture, not of time
        self.netcnnlip = nn.Sequential(
            *_picture(3, 96, (5, 7, 7), stride=half),
            nn.MaxPool3d(pool, half),
            *_picture(96, 256, (1, 5, 5), stride=half, padding=around),
            nn.MaxPool3d(pool, half, around),
            *_picture(256, 256, (1, 3, 3), padding=around),
            *_picture(256, 256, (1, 3, 3), padding=around),
            *_picture(256, 256, (1, 3, 3), padding=around),
            nn.MaxPool3d(pool, half),
            *_picture(256, WIDTH, (1, 6, 6)),
        )

    def forward(self, lips: Tensor, mfcc: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `lip_features` of `lips` and `audio_features` of `mfcc`."""
        return self.lip_features(lips), self.audio_features(mfcc)

    def lip_features(self, lips: Tensor) -> Tensor:
        """(b, 3, 5, 224, 224) BGR in 0..255 -> (b, features)."""
        return self.netfclip(self.netcnnlip(lips).flatten(1))

    def audio_features(self, mfcc: Tensor) -> Tensor:
        """(b, 1, 13, 20) MFCC, 20 steps of 10 ms -> (b, features)."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))


def _sound(
    channels: int, width: int, kernel: int | tuple[int, int], *, padding: int
) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, width, kernel, padding=padding)
    return conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _picture(
    channels: int,
    width: int,
    kernel: tuple[int, int, int],
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
) -> tuple[nn.Module, ...]:
    conv = nn.Conv3d(channels, width, kernel, stride, padding)
    return conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True)


def _head(features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, features)
    )
