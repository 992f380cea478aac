"""Every weight file there is: where it is published, how large it is, its hash, its licence.

One table, `SETS`: what `latentsync download NAME` fetches. Files come to a folder `.incoming` under
the weights folder first, where a broken transfer is taken up again; only a whole file with the
right hash moves to its place.

Hashes and sizes are those of the files as published in 2025; None where they aren't known.
"""

import errno
import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import requests

from latentsync.errors import OptionError, WeightsError, WeightsMismatch

__all__ = ["SETS", "Download", "fetch", "fetch_set"]

log = logging.getLogger(__name__)

PIECE = 1 << 16  # bytes read at a time
TIMEOUT = 30  # seconds without an answer
ROOM = 1 << 28  # bytes to be left free on the disk

MIT = "MIT"
RESEARCH = "InsightFace model pack: non-commercial research only"
CARD = "see the model card (LatentSync's code is Apache-2.0)"
OTHER = "its authors' own terms, see LatentSync's README"
# https://github.com/TencentARC/GFPGAN/blob/master/LICENSE names StyleGAN2 and others as parts of it
APACHE_GFPGAN = "Apache-2.0; parts derived from StyleGAN2 and DFDNet under their own terms"
S_LAB = "S-Lab License 1.0: non-commercial use only"


@dataclass(frozen=True)
class Download:
    """One published file and its place under the weights folder."""

    target: str
    source: str  # "owner/name" on the hub, or a URL
    file: str  # in the repository; or in the zip that the URL leads to; or empty
    licence: str
    size: int | None = None  # bytes
    sha256: str | None = None
    mirror: str | None = None  # URL of the same file, for when the first source doesn't give it

    @property
    def on_hub(self) -> bool:
        return "://" not in self.source


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


def _of_latentsync(name: str, licence: str = OTHER) -> Download:
    return Download(name, OLDER, name, licence)


SETS: dict[str, tuple[Download, ...]] = {
    "v1.6": (
        Download(
            "v1.6/latentsync_unet.pt",
            LATENTSYNC,
            "latentsync_unet.pt",
            CARD,
            5_072_222_488,
            "0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
        ),
        WHISPER,
        VAE,
        *INSIGHTFACE,
    ),
    "v1.5": (
        Download("v1.5/latentsync_unet.pt", OLDER, "latentsync_unet.pt", CARD),
        WHISPER,
        VAE,
        *INSIGHTFACE,
    ),
    "buffalo_l": INSIGHTFACE,
    "yunet": (YUNET,),
    "gfpgan": (GFPGAN,),
    "codeformer": (CODEFORMER,),
    "train": (
        Download("stable_syncnet.pt", LATENTSYNC, "stable_syncnet.pt", CARD),
        _of_latentsync("auxiliary/vgg16-397923af.pth", "BSD-3-Clause (torchvision)"),
        LPIPS_LINEAR,
        _of_latentsync("auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth"),
    ),
    "eval": (
        SYNCNET,
        S3FD,
        INCEPTION,
        ARCFACE,
        _of_latentsync("auxiliary/i3d_torchscript.pt"),
        _of_latentsync("auxiliary/koniq_pretrained.pkl"),
        _of_latentsync("auxiliary/vgg16-397923af.pth", "BSD-3-Clause (torchvision)"),
        LPIPS_LINEAR,
    ),
}


def fetch_set(name: str, folder: Path, report: Callable[[Download], None] | None = None) -> None:
    """Fetch what is called `name` and not there yet; `report` hears of each file that is there.

    Raises:
        OptionError: nothing is called so.
        WeightsError, WeightsMismatch: as `fetch`.
    """
    if name not in SETS:
        raise OptionError(f"nothing is called {name!r}; it must be one of {', '.join(SETS)}")
    for item in SETS[name]:
        fetch(item, folder)
        if report:
            report(item)
    shutil.rmtree(folder / ".incoming", ignore_errors=True)


def fetch(item: Download, folder: Path) -> Path:
    """Fetch one file unless it is there; returns its place.

    From the hub by huggingface_hub: $HF_ENDPOINT, $HF_HUB_OFFLINE, $HF_TOKEN and its cache hold.

    Raises:
        WeightsError: no network, no such file, no space; what has come stays for the next try.
        WeightsMismatch: the file that came is another one; it is removed.
    """
    target = folder / item.target
    if target.is_file():
        return target
    incoming = folder / ".incoming"
    log.info("fetching %s from %s (licence: %s)", item.target, item.source, item.licence)
    try:
        incoming.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(item, folder)
        try:
            staged = _from_hub(item, incoming) if item.on_hub else _from_url(item, incoming)
        except Exception as error:
            if item.mirror is None:
                raise
            log.warning("%s; trying %s", _reason(item, target, error), item.mirror)
            item = replace(item, source=item.mirror, file="")
            staged = _from_url(item, incoming)
        _check_hash(item, staged)
        staged.replace(target)
    except WeightsError:
        raise
    except Exception as error:
        # The hub's library and requests each raise a dozen kinds; all mean that it did not come.
        raise WeightsError(_reason(item, target, error)) from error
    return target


def _from_hub(item: Download, incoming: Path) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    place = incoming / item.source
    cached = try_to_load_from_cache(item.source, item.file)
    if isinstance(cached, str):
        staged = place / item.file
        staged.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(cached, staged))
    return Path(hf_hub_download(item.source, item.file, local_dir=place))


def _from_url(item: Download, incoming: Path) -> Path:
    whole = incoming / item.source.rsplit("/", 1)[-1]
    part = whole.with_name(whole.name + ".part")
    if not whole.is_file():
        have = part.stat().st_size if part.is_file() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(item.source, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            expected = int(answer.headers.get("Content-Length", 0)) + (have if resumed else 0)
            with part.open("ab" if resumed else "wb") as out:
                for piece in answer.iter_content(PIECE):
                    out.write(piece)
        if part.stat().st_size < expected:
            raise OSError(f"the transfer broke off at {part.stat().st_size} of {expected} bytes")
        part.replace(whole)
    if not item.file:
        return whole
    staged = whole.with_name(item.file)
    try:
        with ZipFile(whole) as archive:
            staged.write_bytes(archive.read(_member(archive, item.file)))
    except (BadZipFile, KeyError) as error:
        whole.unlink()
        raise WeightsMismatch(f"{item.source} is not the zip it should be ({error})") from error
    return staged


def _member(archive: ZipFile, name: str) -> str:
    found = [entry for entry in archive.namelist() if Path(entry).name == name]
    if not found:
        raise KeyError(f"no {name} in it")
    return found[0]


def _check_room(item: Download, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if item.size and free < item.size + ROOM:
        raise WeightsError(
            f"{item.target} needs {item.size / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB "
            "free; make room, or name another folder with --weights or $LATENTSYNC_WEIGHTS"
        )


def _check_hash(item: Download, staged: Path) -> None:
    if item.sha256 is None:
        return
    with staged.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != item.sha256:
        staged.unlink()
        raise WeightsMismatch(
            f"{item.target} from {item.source} has sha256 {found[:12]}..., not the published "
            f"{item.sha256[:12]}...; it was removed; try again, or fetch it from another mirror"
        )


def _reason(item: Download, target: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full while fetching {item.target}; make room and run it again"
    reason = next((line for line in map(str.strip, str(error).splitlines()) if line), repr(error))
    return (
        f"{item.target} can't be fetched from {item.source} ({reason[:200]}); check the network "
        f"and run it again, or put the file at {target} yourself"
    )
