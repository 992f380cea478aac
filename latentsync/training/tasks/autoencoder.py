"""Training the image autoencoder on crops, whole and with the mouth masked out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.faces.mask import keep_mask
from latentsync.training.crops import Pixels, to_tensor
from latentsync.training.settings import TrainConfig

__all__ = ["AutoencoderTask", "DecoderTask", "Statistics", "latent_statistics"]

MASKED_SHARE = 0.2  # of the pictures have a hole, as the U-Net's third input has
MOUTH_WEIGHT = 2.0  # on top of 1, under the mask: only there are decoded pixels used
EDGE_WEIGHT = 0.5  # of differences between neighbouring pixels: keeps lines sharp
KL_WEIGHT = 1e-5
LIPS = (slice(14, 20), slice(6, 18))  # rows and columns where lips may be, in 24ths of a crop
LIPS_WEIGHT = 4.0  # on top, there, while only the decoder learns
COLOUR_WEIGHT = 1.0  # of red - green and blue - green, by which lips differ from skin
LATENT_NOISE = 0.1  # standard deviation; the U-Net's latents are never exact
GAIN_NOISE = 0.15  # standard deviation of a colour channel's gain, in half of the pictures


class AutoencoderTask:
    """A task of `loop.fit`: L1 on pixels and on their differences, and a little KL."""

    def __init__(self, vae: VAE, crops: Pixels, held_out: Pixels, config: TrainConfig) -> None:
        self.net = vae
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # lacks in the stub
        self._crops, self._held_out, self._config = crops, held_out, config
        self._mask = torch.from_numpy(keep_mask(crops.shape[-2]))
        weight = 1 + MOUTH_WEIGHT * (1 - self._mask)
        self._weight = weight / weight.mean()

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        count = self._config.batch
        chosen = torch.randint(len(self._crops), (count,), generator=generator)
        shown = to_tensor(self._crops[chosen.numpy()])
        chance = torch.rand((3, count, 1, 1, 1), generator=generator)
        gain = 1 + GAIN_NOISE * torch.randn((count, 3, 1, 1), generator=generator)
        shown = torch.where(chance[0] < 0.5, shown.flip(-1), shown)
        lit = ((shown + 1) * gain - 1).clamp(-1, 1)
        shown = torch.where(chance[1] < 0.5, lit, shown)
        shown = torch.where(chance[2] < MASKED_SHARE, shown * self._mask, shown)
        posterior = self.net.net.encode(shown).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        seen = self.net.net.decode(posterior.mean + posterior.std * noise).sample
        return {
            "pixels": ((seen - shown).abs() * self._weight).mean(),
            "edges": EDGE_WEIGHT * _edge_error(seen, shown),
            "kl": KL_WEIGHT * posterior.kl().mean() / shown[0].numel(),
        }

    def validate(self) -> dict[str, float]:
        """PSNR in dB of the whole picture and of the part under the mask."""
        hole = self._mask < 0.5
        whole, mouth = [], []
        for start in range(0, len(self._held_out), 32):
            shown = to_tensor(self._held_out[start : start + 32])
            error = (self.net.decode(self.net.encode(shown)).clamp(-1, 1) - shown).square() / 4
            whole.append(error.mean((1, 2, 3)))
            mouth.append(error[..., hole].mean((1, 2)))
        psnr = [-10 * torch.cat(errors).log10().mean() for errors in (whole, mouth)]
        return {"psnr": float(psnr[0]), "mouth_psnr": float(psnr[1])}


class DecoderTask:
    """A task of `loop.fit`: the decoder learns further, from latents that don't change.

    A U-Net trained on those latents still fits, and its output is decoded better: lips above all, a
    few pixels that count little in the whole picture. Stable Diffusion's VAE was finished in the
    same way, https://huggingface.co/stabilityai/sd-vae-ft-mse.
    """

    def __init__(
        self, vae: VAE, latents: Tensor, crops: Pixels, held_out: Pixels, config: TrainConfig
    ) -> None:
        """`latents` (n, 4, h, w) are those of the crops (n, R, R, 3)."""
        self.net, self._config = vae, config
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(".decoder." in name or ".post_quant_conv." in name)
        self._latents, self._crops = latents, crops
        self._whole = AutoencoderTask(vae, crops, held_out, config)
        side = crops.shape[-2]
        weight = 1 + MOUTH_WEIGHT * (1 - torch.from_numpy(keep_mask(side)))
        rows, columns = (slice(round(p.start * side / 24), round(p.stop * side / 24)) for p in LIPS)
        weight[rows, columns] += LIPS_WEIGHT
        self._weight = weight / weight.mean()

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(self._crops), (self._config.batch,), generator=generator)
        shown = to_tensor(self._crops[chosen.numpy()])
        latents = self._latents[chosen].float()
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        seen = self.net.decode(latents)
        # The error of red and blue, less green.
        off = (seen[:, ::2] - seen[:, 1:2]) - (shown[:, ::2] - shown[:, 1:2])
        return {
            "pixels": ((seen - shown).abs() * self._weight).mean(),
            "colour": COLOUR_WEIGHT * (off.abs() * self._weight).mean(),
            "edges": EDGE_WEIGHT * _edge_error(seen, shown),
        }

    def validate(self) -> dict[str, float]:
        """As `AutoencoderTask`."""
        return self._whole.validate()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel of a VAE's latents, for `VAEConfig`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def latent_statistics(vae: VAE, crops: Pixels) -> Statistics:
    """Measure them on crops (n, R, R, 3), before any scaling."""
    plain = VAE(VAEConfig(**{**vars(vae.config), "latents_mean": (), "latents_std": ()}))
    plain.load_state_dict(vae.state_dict())
    with torch.inference_mode():
        parts = [plain.encode(to_tensor(crops[i : i + 32])) for i in range(0, len(crops), 32)]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    mean, std = latents.mean(1).tolist(), latents.std(1).tolist()
    return Statistics(tuple(round(v, 4) for v in mean), tuple(round(v, 4) for v in std))


def _edge_error(seen: Tensor, target: Tensor) -> Tensor:
    """Mean error of the differences between neighbouring pixels, along rows plus along columns."""
    errors = [(seen.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (-1, -2)]
    return torch.stack(errors).sum()
