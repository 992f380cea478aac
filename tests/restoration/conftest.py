"""Nothing here is collected where spandrel is not installed: asked for by itself, that fails."""

from importlib.util import find_spec

import torch

torch.set_num_threads(1)  # as tests/conftest.py has it, which is not read there
collect_ignore_glob = [] if find_spec("spandrel") else ["test_*.py"]


def pytest_configure(config):
    # spandrel_extra_arches 0.2 compiles a function of CodeFormer's when it is imported.
    config.addinivalue_line(
        "filterwarnings", "ignore:.*torch.jit.script. is deprecated:DeprecationWarning"
    )
