"""Fetch what the container bakes in: python scripts/download_weights.py [v1.6|v1.5|...]"""

import sys

from latentsync.errors import LatentSyncError
from latentsync.runtime.checkpoints import download


def main() -> None:
    try:
        for name in sys.argv[1:] or ["v1.6"]:
            download(name, report=lambda item: print(f"{item.target}   licence: {item.licence}"))
    except LatentSyncError as error:
        sys.exit(f"download_weights: {error}")


if __name__ == "__main__":
    main()
