"""Losses on the predicted picture: lip-sync by SyncNet, appearance by LPIPS, motion by TREPA.

The picture is the prediction of one step, decoded if a net needs pixels. Losses and their weights:
https://arxiv.org/abs/2412.09262, sections 3.3 and 3.4.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentsync.diffusion.vae import VAE
from latentsync.errors import OptionError
from latentsync.evaluation.nets.loading import FETCH, load_lpips, load_syncnet, load_videomae
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig, cosine_loss, stacked
from latentsync.runtime.checkpoints import root
from latentsync.training.batches import Batch
from latentsync.training.settings import UNetTrainConfig

if TYPE_CHECKING:
    from latentsync.evaluation.nets.videomae import VideoMAE

__all__ = ["PixelLosses", "load_pixel_losses"]


@dataclass(frozen=True)
class PixelLosses:
    """The losses whose nets are given, each times its weight; the nets are frozen."""

    vae: VAE
    config: UNetTrainConfig
    syncnet: StableSyncNet | None = None
    lpips: LPIPS | None = None
    videomae: "VideoMAE | None" = None

    @property
    def sees_pixels(self) -> bool:
        """False if the only net is a SyncNet of latents: then nothing needs to be decoded."""
        pixel_syncnet = self.syncnet is not None and not self.syncnet.config.latent
        return pixel_syncnet or self.lpips is not None or self.videomae is not None

    def __call__(self, clean: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Compute named scalars.

        Args:
            clean: (b, 4, f, h, w) predicted latents; gradients reach them.
            batch: the target, with mel, and with pixels if a net needs them.
        """
        assert batch.mel is not None
        losses, seen, target = {}, clean, batch.clean
        if self.sees_pixels:
            assert batch.pixels is not None
            frames = clean.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
            seen = self.vae.decode(frames).unflatten(0, (len(clean), -1)).transpose(1, 2)
            target = batch.pixels
        # Each net has its own precision; half precision is too coarse for LPIPS and for cosines.
        with torch.autocast(clean.device.type, enabled=False):
            if self.syncnet is not None:
                like = next(self.syncnet.parameters())
                own = self.syncnet.config
                shown = stacked((clean if own.latent else seen).float(), own)
                embedded = self.syncnet(shown.to(like), batch.mel.to(like))
                losses["sync"] = self.config.sync_weight * cosine_loss(*embedded).mean()
            if self.lpips is not None:
                # (b * f, 3, h / 2, w): the lower halves of all frames
                halves = (x[..., x.shape[-2] // 2 :, :].transpose(1, 2) for x in (seen, target))
                found = self.lpips(*(half.flatten(0, 1).float() for half in halves))
                losses["lpips"] = self.config.lpips_weight * found.mean()
            if self.videomae is not None:
                from latentsync.evaluation.nets.videomae import trepa_loss

                found = trepa_loss(self.videomae, seen.float(), target)
                losses["trepa"] = self.config.trepa_weight * found
        return losses


def load_pixel_losses(
    vae: VAE,
    config: UNetTrainConfig,
    weights: Path | str | None = None,
    *,
    side: int = 0,
    syncnet_file: Path | None = None,
    syncnet_config: SyncNetConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PixelLosses | None:
    """Load the nets of all losses with a weight above 0; None if there is no such loss.

    Args:
        side: px, of the crops; 0: not known yet, and not checked.
        syncnet_file: a SyncNet of your own; None: the published stable_syncnet.pt.
        syncnet_config: the architecture of that file; None: the published one.

    Raises:
        OptionError: a SyncNet that no loss uses, or that sees latents of another size.
        WeightsMissing: a net's file is missing; the message names the download.
        WeightsMismatch: a file holds another net.
        BackendUnavailable: TREPA needs the package transformers.
    """
    if syncnet_file and not config.sync_weight:
        raise OptionError(f"sync_weight is 0, so {syncnet_file} is not used; give a --sync-weight")
    if not (config.sync_weight or config.lpips_weight or config.trepa_weight):
        return None
    base = root(weights)
    auxiliary = base / "auxiliary"
    syncnet = lpips = videomae = None
    if config.sync_weight:
        file, hint = base / "stable_syncnet.pt", FETCH
        if syncnet_file:
            file, hint = syncnet_file, "give the syncnet.safetensors that `train syncnet` wrote"
        syncnet = load_syncnet(file, syncnet_config, hint=hint, device=device, dtype=dtype)
        if syncnet.config.frames != config.frames:
            raise OptionError(
                f"{file} judges {syncnet.config.frames} frames at once; this run's windows have "
                f"{config.frames}; give a SyncNet of as many frames"
            )
        wanted = syncnet.config.side * vae.config.downsampling
        if syncnet.config.latent and side not in (0, wanted):
            raise OptionError(
                f"{file} sees latents of crops of {wanted} px; this run's crops have {side} px; "
                "give a SyncNet of pixels, or one of such latents"
            )
        syncnet.enable_gradient_checkpointing(config.gradient_checkpointing)
    if config.lpips_weight:
        lpips = load_lpips(auxiliary / "vgg16-397923af.pth", device=device)
    if config.trepa_weight:
        file = auxiliary / "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
        videomae = load_videomae(file, device=device, dtype=dtype)
        videomae.enable_gradient_checkpointing(config.gradient_checkpointing)
    losses = PixelLosses(vae, config, syncnet, lpips, videomae)
    if config.gradient_checkpointing and losses.sees_pixels:
        vae.net.enable_gradient_checkpointing()
    return losses
