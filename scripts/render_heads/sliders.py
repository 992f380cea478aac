"""MakeHuman's local targets that make one face differ from another."""

__all__ = ["SIDED", "SLIDERS", "SPREAD", "slider_names"]

# Folder -> ends of a slider -> stems. Without ends, the slider goes in one direction only.
SLIDERS: dict[str, dict[str, str]] = {
    "head": {
        "decr incr": "age fat scale-depth scale-horiz scale-vert back-scale-depth",
        "in out": "angle",
        "": "diamond invertedtriangular oval rectangular round square triangular",
    },
    "forehead": {
        "decr incr": "nubian scale-vert temple",
        "backward forward": "trans",
    },
    "eyebrows": {"down up": "angle trans", "backward forward": "trans"},
    "eyes": {
        "decr incr": "bag height1 height2 height3 scale",
        "down up": "corner1 corner2 eyefold-angle eyefold trans",
        "in out": "epicanthus push1 push2 trans",
        "concave convex": "eyefold",
    },
    "nose": {
        "decr incr": "flaring greek hump nostrils-width point-width scale-depth scale-horiz "
        "scale-vert septumangle volume width1 width2 width3",
        "down up": "base nostrils-angle point trans",
        "compress uncompress": "compression",
        "concave convex": "curve",
    },
    "mouth": {
        "decr incr": "cupidsbow cupidsbow-width lowerlip-height lowerlip-volume lowerlip-width "
        "philtrum-volume scale-depth scale-horiz scale-vert upperlip-height upperlip-volume "
        "upperlip-width",
        "down up": "angles lowerlip-middle trans",
        "in out": "dimples laugh-lines",
        "backward forward": "trans",
    },
    "chin": {
        "decr incr": "bones cleft height jaw-drop prognathism prominent width",
        "": "triangle",
    },
    "cheek": {"decr incr": "bones volume inner", "down up": "trans"},
    "ears": {
        "decr incr": "scale wing lobe",
        "backward forward": "rot",
        "down up": "trans",
    },
    "neck": {"decr incr": "double scale-horiz scale-depth"},
}
SIDED = {"eyes": "eye", "cheek": "cheek", "ears": "ear"}
"""Folders whose targets exist for each side (`l-eye-...`), and the name they have there."""

# Standard deviations. Above 0.3, and for eyes above 0.2, faces get grotesque (seen by eye).
SPREAD = {
    "head": 0.17,
    "forehead": 0.2,
    "eyebrows": 0.22,
    "eyes": 0.2,
    "nose": 0.25,
    "mouth": 0.26,
    "chin": 0.24,
    "cheek": 0.3,
    "ears": 0.3,
    "neck": 0.25,
}


def slider_names(folder: str) -> list[tuple[str, str]]:
    """Name the two ends of each slider of a folder; the first is "" where there is only one."""
    part = SIDED.get(folder, folder)
    names = []
    for ends, stems in SLIDERS[folder].items():
        low, high = ends.split() if ends else ("", "")
        for stem in stems.split():
            whole = f"{part}-{stem}"
            names.append((f"{whole}-{low}", f"{whole}-{high}") if ends else ("", whole))
    return names
