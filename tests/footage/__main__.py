"""Run the zoo: python -m tests.footage [--fast] [--keep FOLDER] [NAME ...]; 1 when any fails."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.footage.trial import Case, brief, differences, model_loaded_once, run, table
from tests.footage.zoo import Zoo

WIDTH = 58  # characters of what is expected, and of what came


def trial_of(case: Case, zoo: Zoo) -> bool:
    """Run one case, print its line and what is wrong; whether nothing is."""
    try:
        got = run(case, zoo)
    except Exception as error:  # noqa: BLE001 - the others are run all the same
        sys.stdout.write(f"{case.name:<26} could not be tried: {error!r}  FAIL\n")
        return False
    wrong = differences(case, got)
    expected, came = (f"{brief(told)[:WIDTH]:<{WIDTH}}" for told in (case, got))
    verdict = "FAIL" if wrong else "PASS"
    sys.stdout.write(f"{case.name:<26} {expected}  {came}  {verdict} {got.took:5.1f} s\n")
    for line in wrong:
        sys.stdout.write(f"    {line}\n")
    if wrong:
        sys.stdout.write(f"    {got.command}\n")
    sys.stdout.flush()
    return not wrong


def trials(cases: list[Case], folder: Path) -> int:
    """Run cases; 1 when any fails."""
    started = time.perf_counter()
    sys.stdout.write(f"{'clip':<26} {'expected':<{WIDTH}}  {'got':<{WIDTH}}\n")
    zoo_folder = folder / "zoo"
    zoo_folder.mkdir()
    zoo = Zoo(zoo_folder)
    with model_loaded_once():
        failed = [case.name for case in cases if not trial_of(case, zoo)]
    took = time.perf_counter() - started
    sys.stdout.write(f"{len(cases) - len(failed)} of {len(cases)} passed in {took:.0f} s\n")
    if failed:
        sys.stdout.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.footage", description=__doc__)
    parser.add_argument("names", nargs="*", help="of cases; default all")
    parser.add_argument("--fast", action="store_true", help="what `make test` runs")
    parser.add_argument("--keep", type=Path, help="a new folder for the clips and the outputs")
    given = parser.parse_args()
    cases = [case for case in table() if case.name in given.names or not given.names]
    cases = [case for case in cases if case.fast or not given.fast]
    if unknown := set(given.names) - {case.name for case in cases}:
        parser.error(f"no such clips: {', '.join(sorted(unknown))}")
    if given.keep:
        given.keep.mkdir(parents=True)
        return trials(cases, given.keep)
    with tempfile.TemporaryDirectory() as folder:
        return trials(cases, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
