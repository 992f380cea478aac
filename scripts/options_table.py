"""Write docs/options.md: the options of a run by group, from the fields of `Options`.

python scripts/options_table.py
"""

from itertools import groupby
from pathlib import Path

from latentsync.options import Declared, Options, declared
from latentsync.service.requests import OPTIONS

__all__ = ["PAGE", "page", "row"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
HEAD = """# Options of a run

Python takes these names as keywords: `model.run(..., guidance_scale=1.5)`. `latentsync generate`
takes them as flags: `--guidance-scale 1.5`. The task API takes those with a *.

`--published`, or `Options.published()`, sets what the last column says. The options of the last
group have no flags of their own.

<!-- Written by `python scripts/options_table.py`, from latentsync/options.py. -->
"""
COLUMNS = "| option | | values | default | published |\n| --- | --- | --- | --- | --- |\n"


def page() -> str:
    """Return the text of docs/options.md."""
    text = HEAD
    for group, options in groupby(declared(Options).values(), key=lambda option: option.group):
        text += f"\n## {group}\n\n{COLUMNS}" + "".join(map(row, options))
    return text


def row(option: Declared) -> str:
    """Return the row of one option, with a line break at its end."""
    star = "*" if option.name in OPTIONS else ""
    default = option.unset or f"`{option.default}`"
    published = "" if option.published is None else f"`{option.published}`"
    cells = (f"`{option.name}`{star}", option.description, option.values, default, published)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
