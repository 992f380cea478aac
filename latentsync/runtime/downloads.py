"""The table of all weight files: where each is published, its size, hash and licence.

`latentsync download NAME` fetches the files of `SETS[NAME]` (see `fetching`). Sizes and hashes are
those of the files as published in 2025.
"""

from dataclasses import dataclass

__all__ = ["SETS", "Download"]

MIT = "MIT"
RESEARCH = "InsightFace model pack: non-commercial research only"
OPENRAIL = "OpenRAIL++ (openrail++ on the model card)"
OTHER = "its authors' own terms, see LatentSync's README"
# https://github.com/TencentARC/GFPGAN/blob/master/LICENSE lists StyleGAN2 and others
APACHE_GFPGAN = "Apache-2.0; parts derived from StyleGAN2 and DFDNet under their own terms"
S_LAB = "S-Lab License 1.0: non-commercial use only"


@dataclass(frozen=True)
class Download:
    """One published file and its place under the weights folder."""

    target: str
    source: str  # "owner/name" on the hub, or a URL
    file: str  # in the repository, or in the zip at the URL; "" for the URL itself
    licence: str
    size: int  # bytes
    sha256: str
    mirror: str | None = None  # URL of the same file, if the source fails

    @property
    def on_hub(self) -> bool:
        return "://" not in self.source

    @property
    def is_zipped(self) -> bool:
        return bool(self.file) and not self.on_hub


LATENTSYNC = "ByteDance/LatentSync-1.6"
OLDER = "ByteDance/LatentSync-1.5"  # also holds what training and evaluation need
BUFFALO = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"

WHISPER_SHA256 = "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"
WHISPER = Download(
    "whisper/tiny.pt",
    LATENTSYNC,
    "whisper/tiny.pt",
    MIT,
    75_572_083,
    WHISPER_SHA256,
    # Its own project's address, as in https://github.com/openai/whisper/blob/v20250625/whisper/__init__.py
    f"https://openaipublic.azureedge.net/main/whisper/models/{WHISPER_SHA256}/tiny.pt",
)
VAE = Download(
    "vae/diffusion_pytorch_model.safetensors",
    "stabilityai/sd-vae-ft-mse",
    "diffusion_pytorch_model.safetensors",
    MIT,
    334_643_276,
    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
)
INSIGHTFACE = (
    Download(
        "auxiliary/models/buffalo_l/det_10g.onnx",
        BUFFALO,
        "det_10g.onnx",
        RESEARCH,
        16_923_827,
        "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    ),
    Download(
        "auxiliary/models/buffalo_l/2d106det.onnx",
        BUFFALO,
        "2d106det.onnx",
        RESEARCH,
        5_030_888,
        "f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf",
    ),
)
YUNET = Download(
    "auxiliary/face_detection_yunet_2023mar.onnx",
    "opencv/face_detection_yunet",
    "face_detection_yunet_2023mar.onnx",
    MIT,
    232_589,
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
GFPGAN = Download(
    "auxiliary/GFPGANv1.4.pth",
    "https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
    "",
    APACHE_GFPGAN,
    348_632_874,
    "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
)
CODEFORMER = Download(
    "auxiliary/codeformer.pth",
    "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
    "",
    S_LAB,
    376_637_898,
    "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
)


SYNCNET = Download(
    "auxiliary/syncnet_v2.model",
    OLDER,
    "auxiliary/syncnet_v2.model",
    OTHER,
    54_573_114,
    "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    "http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
)
S3FD = Download(
    "auxiliary/sfd_face.pth",
    LATENTSYNC,
    "auxiliary/sfd_face.pth",
    OTHER,
    89_844_381,
    "d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",
    "https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/sfd_face.pth",
)
INCEPTION = Download(
    "auxiliary/pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "",
    "see pytorch-fid (Apache-2.0)",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
ARCFACE = Download(
    "auxiliary/models/buffalo_l/w600k_r50.onnx",
    BUFFALO,
    "w600k_r50.onnx",
    RESEARCH,
    174_383_860,
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
)
LPIPS_LINEAR = Download(
    "auxiliary/lpips_vgg.pth",
    # The package lpips 0.1.4 holds the same file, but asks for torchvision.
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/c33f89e9f46522a584cf41d8880eb0afa982708b/lpips/weights/v0.1/vgg.pth",
    "",
    "BSD-2-Clause (LPIPS)",
    7_289,
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


VGG16 = Download(
    "auxiliary/vgg16-397923af.pth",
    OLDER,
    "auxiliary/vgg16-397923af.pth",
    "BSD-3-Clause (torchvision)",
    553_433_881,
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
VIDEOMAE = Download(
    "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    OLDER,
    "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    OTHER,
    2_023_804_201,
    "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
)
I3D = Download(
    "auxiliary/i3d_torchscript.pt",
    OLDER,
    "auxiliary/i3d_torchscript.pt",
    OTHER,
    51_235_320,
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)
KONIQ = Download(
    "auxiliary/koniq_pretrained.pkl",
    OLDER,
    "auxiliary/koniq_pretrained.pkl",
    OTHER,
    109_768_650,
    "ff9277bcc68ecc10e77d88b6d0a32825ec3c85562095542734ec6212eaaf6d81",
)
STABLE_SYNCNET = Download(
    "stable_syncnet.pt",
    LATENTSYNC,
    "stable_syncnet.pt",
    OPENRAIL,
    1_605_328_746,
    "77678d13861a02d6e83d0b169962175b6266be773f1f6f85fda2b0182e225118",
)

SETS: dict[str, tuple[Download, ...]] = {
    "v1.6": (
        Download(
            "v1.6/latentsync_unet.pt",
            LATENTSYNC,
            "latentsync_unet.pt",
            OPENRAIL,
            5_072_222_488,
            "0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
        ),
        WHISPER,
        VAE,
        *INSIGHTFACE,
    ),
    "v1.5": (
        Download(
            "v1.5/latentsync_unet.pt",
            OLDER,
            "latentsync_unet.pt",
            OPENRAIL,
            5_072_348_184,
            "6440b49a7ccceff56cdc001f5f17605216337f5bbd66fa360139768926e23f51",
        ),
        WHISPER,
        VAE,
        *INSIGHTFACE,
    ),
    "buffalo_l": INSIGHTFACE,
    "yunet": (YUNET,),
    "gfpgan": (GFPGAN,),
    "codeformer": (CODEFORMER,),
    "train": (STABLE_SYNCNET, VGG16, LPIPS_LINEAR, VIDEOMAE),
    "eval": (SYNCNET, S3FD, INCEPTION, ARCFACE, I3D, KONIQ, VGG16, LPIPS_LINEAR),
}
