"""Command line: `latentsync COMMAND`, one function per command.

Every error is one line. Exit codes: 2 bad usage or input, 1 failure, 130 interrupted.
"""

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskID
from typer.main import get_command

from latentsync.cli import app as page
from latentsync.cli import evaluate, generate, prepare, serve, train, upscale
from latentsync.cli.common import (
    AsJson,
    Device,
    Dtype,
    ModelsDetector,
    OutputFolder,
    Weights,
    path_argument,
    print_json,
)
from latentsync.cli.progress_bars import bars, console, progress_callback, transfer_bars
from latentsync.errors import (
    HOST,
    Asker,
    InputError,
    LatentSyncError,
    OptionError,
    WeightsMismatch,
)
from latentsync.options import Effort, Options, declared
from latentsync.runtime.downloads import SETS, Download

__all__ = ["main"]

commands = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Lip-sync by latent diffusion: a clip and a voice in, the same clip speaking it out.",
)
spellings = {"token_normalize_func": lambda name: generate.PUBLISHED_SPELLINGS.get(name, name)}
commands.command(context_settings=spellings)(generate.generate)
commands.command(context_settings=spellings)(upscale.upscale)
commands.command()(evaluate.evaluate)
commands.command()(prepare.prepare)
commands.command()(serve.serve)
commands.command()(page.app)
commands.command()(serve.work)
commands.add_typer(serve.keys, name="keys")
commands.add_typer(train.train, name="train")

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command, and turn every error into one line and an exit code."""
    # Before torch is imported: its threads, where they wait in a loop, starve each other and the
    # encoder on a busy CPU. Figures: benchmarks/README.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    given = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        # Not standalone: typer raises what is wrong with the usage, and returns exit codes.
        code = commands(given or ["--help"], standalone_mode=False) or 0
        line = "interrupted" if code == INTERRUPTED else ""
    except Exception as error:  # noqa: BLE001 - a person gets one line, a developer --debug
        if debug:
            console.print_exception()
        line, code = _explained(error)
    if line:
        # For people and scripts alike: without colours, and on one line whatever a name holds.
        sys.stderr.write(f"latentsync: error: {' '.join(line.splitlines())}\n")
    sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code of an error."""
    if isinstance(error, typer.TyperException):
        return error.format_message(), BAD_INPUT
    if isinstance(error, LatentSyncError):
        return error.told(Asker(_flag, at_host=True)), (
            BAD_INPUT if isinstance(error, InputError) else FAILED
        )
    reason = " ".join(str(error).split())
    bug = "this is a bug: please report it with the output of --debug"
    return f"{type(error).__name__}: {reason} ({bug})", FAILED


def _flag(option: str) -> str | None:
    """Return the flag of an option, None if no command has one; HOST is always at hand."""
    if option == HOST:
        return HOST
    waiting: list[Any] = [get_command(commands)]
    for command in waiting:
        waiting += getattr(command, "commands", {}).values()  # a group's
    flags = (given for command in waiting for given in command.params if given.name == option)
    return next((flag.opts[0] for flag in flags if flag.opts[0].startswith("--")), None)


@commands.callback()
def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what is done and chosen, and why.")
    ] = False,
    debug: Annotated[  # noqa: ARG001 - main takes it out, wherever it stands
        bool, typer.Option("--debug", help="Show where an error comes from.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not verbose:
        warnings.simplefilter("ignore")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it sets its level when it is imported


@commands.command()
def info(
    file: Annotated[Path, path_argument(help="Any clip, picture or sound.")],
    as_json: AsJson = False,
) -> None:
    """Print the facts of a media file."""
    from latentsync.media import probe

    facts = probe(file)
    if as_json:
        print_json(facts)
        return
    for name, value in asdict(facts).items():
        if isinstance(value, dict):
            value = "  ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items())
        typer.echo(f"{name.replace('_', ' '):<10} {value}")


@commands.command()
def download(
    name: Annotated[str, typer.Argument(help=f"What to fetch: {', '.join(SETS)}.")],
    weights: Weights = None,
) -> None:
    """Download published weights; files that are there are kept, broken transfers resumed."""
    from latentsync.runtime.checkpoints import download as fetch
    from latentsync.runtime.checkpoints import root

    def show(item: Download) -> None:
        typer.echo(f"{root(weights) / item.target}   licence: {item.licence}")

    with transfer_bars() as drawn:
        tasks: dict[str, TaskID] = {}

        def move(item: Download, done: int, total: int | None) -> None:
            if item.target not in tasks:
                tasks[item.target] = drawn.add_task(Path(item.target).name)
            drawn.update(tasks[item.target], completed=done, total=total)

        fetch(name, weights, show, move)


@commands.command("verify")
def _verify(
    model: Annotated[
        str, typer.Argument(help="Model: v1.6, v1.5, demo, or a folder that training wrote.")
    ],
    clip: Annotated[
        Path | None, path_argument(help="Clip to run on.", show_default="the drawn example")
    ] = None,
    voice: Annotated[
        Path | None, path_argument(help="Voice to run on.", show_default="the spoken example")
    ] = None,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = None,
    detector: ModelsDetector = None,
    steps: Annotated[int, typer.Option(help=declared(Options)["steps"].help)] = Effort.steps,
    seconds: Annotated[float, typer.Option(help="Seconds of the voice to use.")] = 4.0,
) -> None:
    """Check a model's files, load it strictly and run it; print a table for a bug report."""
    from latentsync.cli.verify import verify as checks

    wrong = 0
    for check in checks(
        model,
        clip,
        voice,
        weights=weights,
        device=device,
        dtype=dtype,
        detector=detector,
        steps=steps,
        seconds=seconds,
    ):
        verdict = {True: "ok", False: "WRONG", None: ""}[check.good]
        wrong += check.good is False
        typer.echo(f"{verdict:<6} {check.what:<42} {check.found}")
    if wrong:
        raise WeightsMismatch(f"{wrong} of these checks went wrong; the table says which")


@commands.command("doctor")
def _doctor(
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Check what this machine lacks, and print the remedy of each finding."""
    from latentsync.cli.doctor import examine

    found = list(examine(weights))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    for one in found if not as_json else []:
        verdict = {True: "ok", False: "WRONG", None: "-"}[one.good]
        typer.echo(f"{verdict:<6} {one.what:<21} {one.found}")
        if one.remedy:
            typer.echo(f"{'->':>30} {one.remedy}")
    if wrong := [one.what for one in found if one.good is False]:
        raise LatentSyncError(f"wrong here: {', '.join(wrong)}; each has its remedy beside it")


@commands.command()
def synthesise(
    output: OutputFolder,
    identities: Annotated[int, typer.Option(help="Number of people, one clip each.")] = 200,
    seconds: Annotated[float, typer.Option(help="Seconds of each clip. 0.2 to 3600.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds draw equal clips.")] = 1,
    size: Annotated[
        str, typer.Option(help="Size of the clips, WIDTHxHEIGHT in px. 64 to 4096 each.")
    ] = "512x512",
    languages: Annotated[
        list[str] | None,
        typer.Option(
            help="Languages of the voices, de,fr,... or repeated.", show_default="all there are"
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Clips drawn side by side.")] = 1,
) -> None:
    """Draw clips of talking people to train on, each with the truth of every frame.

    Finished clips are not drawn again. NAME.truth.jsonl has one line per frame:
    number, time in seconds, opening, width and rounding of the mouth, phonemes
    that begin in it, what mouth and head do, and landmarks in pixels.
    """
    from latentsync.training.synthetic import synthesise as draw
    from latentsync.training.synthetic.speech import LANGUAGES

    chosen = [name.strip() for given in languages or () for name in given.split(",")]
    with bars("clips") as drawn:
        paths = draw(
            output,
            identities=identities,
            seconds=seconds,
            seed=seed,
            size=_size(size),
            languages=chosen or LANGUAGES,
            workers=workers,
            progress=progress_callback(drawn),
        )
    typer.echo(f"{len(paths)} clips, {len(paths) * seconds:.1f} s in all, in {output}")


def _size(text: str) -> tuple[int, int]:
    """Parse "512x512" as (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise OptionError(f"--size is {text!r}; it must be WIDTHxHEIGHT in pixels, such as 512x512")
    return int(width), int(height)
