"""What a training run of a tiny model is given, and what it leaves."""

import csv
from dataclasses import dataclass
from pathlib import Path

from latentsync.diffusion import weights
from latentsync.training.clips import ClipFile, identify_clips
from latentsync.training.settings import TrainingSettings
from tests.clips import babble
from tests.stubs import numbered_clip, tiny_nets


@dataclass(frozen=True)
class Folders:
    """Given to every run; the first one fills the cache."""

    data: Path  # three clips, as short as training takes them, that the stub takes for faces
    model: Path  # to start from
    cache: Path

    def settings(self, output: Path) -> TrainingSettings:
        return TrainingSettings(self.data, output, self.cache, cpu=True)


def made_in(folder: Path) -> Folders:
    folders = Folders(folder / "clips", folder / "model", folder / "cache")
    folders.data.mkdir()
    for i in range(3):
        sound = babble(2.1, 48000, seed=i)
        numbered_clip(folders.data / f"{i}.mp4", 48 + i, sound=sound)
    weights.save(tiny_nets(), folders.model)
    return folders


def rows(folder: Path, name: str = "demo") -> list[dict[str, str]]:
    """The figures of a run, without the time."""
    with (folder / f"{name}.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def files_of(*paths: Path) -> list[ClipFile]:
    """Clips as training finds them; they lie in one folder."""
    return identify_clips(list(paths), paths[0].parent, paths[0].parent / "digests")


def prepared_in(cache: Path) -> list[Path]:
    """The folders of clips in a cache."""
    return sorted(path.parent for path in cache.glob("*/*/facts.json"))
