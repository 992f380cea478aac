"""What people call the output, and where their weights are."""

from pathlib import Path

DEMO = Path(__file__).parents[2] / "weights" / "demo"


def out(zoo, name):
    """A new file in a folder of its own."""
    zoo.at("out").mkdir(exist_ok=True)
    return zoo.at("out") / f"{name}.mp4"


def a_mov(zoo):
    """Edits with a program that wants QuickTime files."""
    return zoo.at("for_the_editor.mov")


def in_no_folder(zoo):
    """Mistyped the folder."""
    return zoo.at("nowhere") / "out.mp4"


def a_folder(zoo):
    """Gave a folder and no name."""
    zoo.at("results").mkdir(exist_ok=True)
    return zoo.at("results")


def a_link(zoo):
    """Linked the output to another place."""
    zoo.at("elsewhere.mp4").write_bytes(b"precious")
    zoo.at("link.mp4").symlink_to("elsewhere.mp4")
    return zoo.at("link.mp4")


def an_old_file(zoo):
    """Ran it twice."""
    zoo.at("old.mp4").write_bytes(b"the output of yesterday")
    return zoo.at("old.mp4")


def only_the_demo(zoo):
    """Downloaded no weights."""
    zoo.at("weights").mkdir()
    zoo.at("weights/demo").symlink_to(DEMO)
    return zoo.at("weights")
