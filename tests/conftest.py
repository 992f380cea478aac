"""What holds for all tests: one thread for torch (the nets are so small that a second one mostly
waits), and no skipped test where LATENTSYNC_NO_SKIPS is set, except for want of a GPU.
"""

import os
import signal
from collections.abc import Generator, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start, too

import pytest
import torch

from tests.training_run import Folders, made_in

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test a failed one where every test has to run, as in CI."""
    report = yield
    needless = report.skipped and not hasattr(report, "wasxfail")
    if needless and os.environ.get("LATENTSYNC_NO_SKIPS") and "GPU" not in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture
def obeys_sigint() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the shell had it ignored (`make test &`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of training runs; made once for all."""
    return made_in(tmp_path_factory.mktemp("training"))
