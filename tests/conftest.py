"""One thread for torch: the nets here are so small that a second one mostly waits."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start, too

import pytest
import torch

from tests.training_run import Folders, made_in

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of training runs; made once for all."""
    return made_in(tmp_path_factory.mktemp("training"))
