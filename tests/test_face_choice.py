"""The text that says whose face is meant, and what is said when nobody is there."""

from pathlib import Path

import pytest

from latentsync.errors import NoFaceFound, OptionError
from latentsync.faces import LARGEST, Builtin, FaceChoice, no_face


@pytest.mark.parametrize("text", ["largest", "left", "right", "center", "all"])
def test_words(text: str) -> None:
    assert FaceChoice.parse(text) == FaceChoice(text)  # type: ignore[arg-type]
    assert str(FaceChoice.parse(text)) == text


def test_places_and_pictures(tmp_path: Path) -> None:
    assert FaceChoice.parse("120,80.5") == FaceChoice("point", (120, 80.5), 0)
    assert FaceChoice.parse("120,80@2.5") == FaceChoice("point", (120, 80), 2.5)
    assert FaceChoice.parse("1,2,30,40@3") == FaceChoice("box", (1, 2, 30, 40), 3)
    picture = tmp_path / "a,b@c.png"
    picture.touch()
    assert FaceChoice.parse(str(picture)) == FaceChoice("reference", picture=picture)
    for text in ("120,80.5", "120,80@2.5", "1,2,30,40@3", str(picture)):
        assert str(FaceChoice.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("biggest", "largest, left, right"),
        ("", "largest, left, right"),
        ("12", "a point x,y"),
        ("none.png", "the file of a picture"),
        ("1,2,3", "x,y,width,height"),
        ("-5,80", "upper left corner"),
        ("5,80@", "@seconds"),
        ("5,80@-1", "@seconds"),
        ("5,80@soon", "@seconds"),
        ("5,nan", "a point x,y"),
        ("5,5,7,90", "8 px"),
    ],
)
def test_texts_that_mean_no_face(text: str, wanted: str) -> None:
    with pytest.raises(OptionError, match=wanted) as caught:
        FaceChoice.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_to_say_when_nothing_is_found() -> None:
    detector = Builtin()
    text = str(NoFaceFound(no_face(detector, 50, LARGEST)))
    assert "50 frames looked at (0-2.00 s" in text
    assert detector.describe() in text
    assert "face x,y,width,height@seconds" in text
    assert "draw another box" in no_face(detector, 50, FaceChoice.parse("1,2,30,40"))
    for choice in (LARGEST, FaceChoice.parse("1,2,30,40")):
        assert "\n" not in no_face(detector, 50, choice)
