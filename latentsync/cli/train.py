"""Command line of training: `latentsync train unet`, `syncnet` and `export`.

On several devices: `accelerate launch --module latentsync train unet ...`.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from latentsync.cli.common import ModelsDetector, OutputFolder, Weights, machine_option
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.cli.progress_bars import bars, progress_callback
from latentsync.errors import Cancelled, OptionError, WeightsMissing, option_name
from latentsync.training.settings import TrainConfig, TrainingSettings, UNetTrainConfig

if TYPE_CHECKING:
    from latentsync.diffusion.weights import Nets
    from latentsync.faces import Detector

__all__ = ["train"]

INTERRUPTED = 130

Run = TypeVar("Run", bound=TrainConfig)

train = typer.Typer(no_args_is_help=True, help="Train the nets on clips of your own.")


@train.callback()
def _root() -> None:
    """Train the nets on clips of your own."""


@dataclass(frozen=True)
class TrainingFiles:
    """Files and devices of a run, as fields of `TrainingSettings`."""

    data: Annotated[Path, typer.Option(help="Folder of clips with sound and a face each.")]
    output: OutputFolder
    held_out: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Clips that are only validated on; 0 trains on all.",
            show_default="1 of 50",
        ),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of prepared clips.", show_default="OUTPUT/cache"),
    ] = None
    detector: ModelsDetector = None
    weights: Weights = None
    cpu: Annotated[bool, machine_option("--cpu", help="Use no GPU.")] = False


LEARNING = (
    *("batch", "steps", "accumulate", "learning_rate", "seed", "precision"),
    *("log_every", "validate_every", "checkpoint_every", "keep_checkpoints"),
)
LOSSES = ("speech_dropout", "sync_weight", "lpips_weight", "trepa_weight")

Learning = Annotated[dict[str, Any], FieldsOf(TrainConfig, LEARNING, of_preset=True)]
UNetLearning = Annotated[
    dict[str, Any], FieldsOf(UNetTrainConfig, (*LEARNING, *LOSSES), of_preset=True)
]


@train.command()
@grouped
def unet(
    *,
    files: TrainingFiles,
    preset: Annotated[
        str,
        typer.Option(
            help="Preset: stage1, stage2, stage2_efficient, stage1_512, stage2_512 or demo."
        ),
    ] = "stage2",
    init: Annotated[
        str | None,
        typer.Option(
            help="Model to start from: v1.6, v1.5, demo, or a folder that training wrote.",
            show_default="v1.6; demo for the preset demo",
        ),
    ] = None,
    learning: UNetLearning,
    syncnet_file: Annotated[
        Path | None,
        typer.Option(
            "--syncnet",
            help="The file that `train syncnet` wrote.",
            show_default="the published one",
        ),
    ] = None,
    syncnet_preset: Annotated[
        str,
        typer.Option(help="Preset of that file: pixel_attn, pixel, latent, 25_pixel or small."),
    ] = "pixel_attn",
    show: Annotated[bool, typer.Option(help="Make a clip at each validation.")] = True,
) -> None:
    """Train the U-Net; run the same command again to continue.

    OUTPUT gets model/ (for --model and latentsync.load) and best/, the model of
    the best validation; PRESET.csv, PRESET.checkpoint.pt, curves.png, and
    validation/ with a clip each. Options without a default take the preset's.
    """
    from latentsync.training.presets import SYNCNET_RUNS, UNET_RUNS

    run = _configured(UNET_RUNS, preset, learning)
    judge = _named(SYNCNET_RUNS, syncnet_preset, "syncnet_preset").net
    from latentsync.training.main import train_unet

    _trained(
        "--preset demo --init demo",
        train_unet,
        run,
        TrainingSettings(**vars(files)),
        init=init or ("demo" if preset == "demo" else "v1.6"),
        syncnet_file=syncnet_file,
        syncnet_config=judge,
        show=_speak if show else None,
    )


@train.command()
@grouped
def syncnet(
    *,
    files: TrainingFiles,
    preset: Annotated[
        str,
        typer.Option(
            help="Preset: pixel_attn, pixel, latent, 25_pixel, or small (demo's latents, for a "
            "CPU)."
        ),
    ] = "pixel",
    model: Annotated[
        str,
        typer.Option(
            help="Model whose VAE prepares the clips: v1.6, v1.5, demo, or a folder that training "
            "wrote."
        ),
    ] = "v1.6",
    learning: Learning,
) -> None:
    """Train the net that judges lip-sync; run the same command again to continue.

    OUTPUT gets syncnet.safetensors (for `train unet --syncnet`), best.safetensors of
    the best validation, PRESET.csv with the accuracy on held-out clips,
    PRESET.checkpoint.pt and curves.png. Options without a default take the preset's.
    """
    from latentsync.training.presets import SYNCNET_RUNS

    run = _configured(SYNCNET_RUNS, preset, learning)
    from latentsync.training.main import train_syncnet

    settings = TrainingSettings(**vars(files))
    _trained("--preset small --model demo", train_syncnet, run, settings, model=model)


@train.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A folder that training filled, or a model's folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .pt to write.")],
) -> None:
    """Write trained weights in float32, in the form that the published code reads.

    Of a run, these are the averaged weights of its last checkpoint.
    """
    from latentsync.training.export import export as run

    step = run(source, output)
    typer.echo(f"{output} (step {step})")


def _trained(
    trial: str, training: Callable[..., Path], *arguments: object, **options: object
) -> None:
    """Run a training with bars and a way to stop it, and print what it wrote.

    Args:
        trial: options that need no download.
    """
    try:
        with bars("steps") as drawn, _stopping() as asked:
            result = training(
                *arguments, **options, progress=progress_callback(drawn), cancel=asked
            )
    except WeightsMissing as error:
        # The advice is for commands that have `--model`; what it fetches may be a judge's, too.
        raise WeightsMissing(str(error).replace("use `--model demo`", f"use `{trial}`")) from error
    except Cancelled as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(INTERRUPTED) from stopped
    typer.echo(result)


def _named(presets: Mapping[str, Run], name: str, option: str = "preset") -> Run:
    if name not in presets:
        raise OptionError(
            f"{option_name(option)} is {name!r}; it must be one of {', '.join(presets)}"
        )
    return presets[name]


def _configured(presets: Mapping[str, Run], preset: str, given: dict[str, Any]) -> Run:
    """Return the preset, overridden by the values given.

    Raises:
        OptionError: no such preset, or a value out of its range.
    """
    run = replace(_named(presets, preset), **given)
    if run.validate_every % run.log_every:
        raise OptionError(
            f"{option_name('validate_every')} is {run.validate_every}; it must be a multiple of "
            f"{option_name('log_every')}, {run.log_every}"
        )
    return run


def _speak(
    nets: "Nets",
    detector: "Detector",
    face: Path,
    voice: Path,
    output: Path,
    cancel: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Let a face speak another clip's voice, and measure how its mouth follows that voice.

    The truth is the mouth of the voice's own clip. The mouth net that measures both
    knows drawn faces; on filmed ones its figure is a hint, no measurement.

    Raises:
        Cancelled: `cancel` said so.
    """
    from latentsync.evaluation.lip_correlation import lip_correlation
    from latentsync.evaluation.mouth_net import MouthNet, find_track, mouth_track
    from latentsync.pipeline.lipsync import LipSync

    LipSync(nets, detector).run(
        face, voice, output, seed=1247, guidance_scale=1.5, cancelled=cancel
    )
    if cancel():
        raise Cancelled("the validation was stopped")
    net = MouthNet.load()
    shown = mouth_track(output, net, detector, track=find_track(face, detector))[:, 0]
    truth = mouth_track(voice, net, detector)[:, 0]
    both = min(len(shown), len(truth))
    return {"lip_correlation": lip_correlation(shown[:both], truth[:both]).at_zero}


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C or SIGTERM within the block; the second one ends the program."""
    noted: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(one) for one in signals]

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        restore()

    def restore() -> None:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)

    for one in signals:
        signal.signal(one, note)
    try:
        yield lambda: bool(noted)
    finally:
        restore()
