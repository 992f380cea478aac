"""Blender materials: a small helper to build node trees, and one function a material."""

from collections.abc import Mapping
from typing import Any

import bpy
import numpy as np

from .makehuman import Floats
from .people import Look

__all__ = [
    "Nodes",
    "cloth_material",
    "eye_material",
    "frame_material",
    "hair_material",
    "lash_material",
    "lens_material",
    "mouth_material",
    "skin_material",
    "tooth_material",
]

_SCATTER_OF_SKIN = (1.0, 0.36, 0.2)  # how far red, green and blue light spread under it
_IRIS, _PUPIL = 0.47, (0.14, 0.22)  # rad from the pole of the eyeball

Input = Any
"""A socket, a node (its first output), a number, a vector or a linear RGB colour."""
Inputs = Mapping[Any, Input]
"""By the name or the number of a node's input."""


class Nodes:
    """A node tree that is built by calls; sockets are what the methods return and take."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree
        tree.nodes.clear()

    def add(self, kind: str, inputs: Inputs | None = None, **properties: Input) -> bpy.types.Node:
        node = self.tree.nodes.new(kind)
        for name, value in properties.items():
            setattr(node, name, value)
        for key, value in (inputs or {}).items():
            self.connect(node, key, value)
        return node

    def connect(self, node: bpy.types.Node, name: str | int, value: Input) -> None:
        """Link a socket (or a node's first output), or set a constant."""
        socket = node.inputs[name]
        if isinstance(value, bpy.types.Node):
            value = value.outputs[0]
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, socket)
        elif socket.type == "RGBA" and len(value) == 3:
            socket.default_value = (*value, 1.0)
        else:
            socket.default_value = value

    def math(self, operation: str, a: Input, b: Input = 0.0) -> bpy.types.NodeSocket:
        return self.add("ShaderNodeMath", {0: a, 1: b}, operation=operation).outputs[0]

    def mix(self, share: Input, a: Input, b: Input) -> bpy.types.NodeSocket:
        node = self.tree.nodes.new("ShaderNodeMix")
        node.data_type = "RGBA"
        for name, value in ((0, share), (6, a), (7, b)):
            self.connect(node, name, value)
        return node.outputs[2]

    def attribute(self, name: str, output: str = "Fac") -> bpy.types.NodeSocket:
        return self.add("ShaderNodeAttribute", attribute_name=name).outputs[output]

    def noise(
        self, at: Input, scale: float, detail: float = 3.0, roughness: float = 0.5
    ) -> bpy.types.NodeSocket:
        inputs = {"Vector": at, "Scale": scale, "Detail": detail, "Roughness": roughness}
        return self.add("ShaderNodeTexNoise", inputs).outputs["Fac"]

    def ramp(self, x: Input, low: float, high: float) -> bpy.types.NodeSocket:
        """0 at `low` .. 1 at `high`, clamped."""
        node = self.add("ShaderNodeMapRange", {0: x, 1: low, 2: high})
        node.clamp = True
        return node.outputs[0]

    def grainy(self, colour: Input, dark: Input, grain: float) -> dict[str, Input]:
        """Mottle two colours, with small bumps, `grain` of them per metre; inputs of a BSDF."""
        at = self.add("ShaderNodeTexCoord").outputs["Object"]
        bumps = {"Height": self.noise(at, grain, 4.0), "Strength": 0.4, "Distance": 0.001}
        return {
            "Base_Color": self.mix(self.noise(at, grain * 0.6, 4.0), colour, dark),
            "Normal": self.add("ShaderNodeBump", bumps),
        }

    def principled(self, **inputs: Input) -> bpy.types.Node:
        """Make a principled BSDF, inputs by their names with `_` for a space."""
        named = {name.replace("_", " "): value for name, value in inputs.items()}
        shader = self.add("ShaderNodeBsdfPrincipled", named)
        shader.subsurface_method = "BURLEY"
        return shader

    def finish(self, shader: bpy.types.Node) -> None:
        output = self.tree.nodes.new("ShaderNodeOutputMaterial")
        self.tree.links.new(shader.outputs[0], output.inputs["Surface"])


def _material(name: str) -> tuple[bpy.types.Material, Nodes]:
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    return material, Nodes(material.node_tree)


def skin_material(look: Look) -> bpy.types.Material:
    """Skin from the vertex attributes `tint`, `rough` and `inside`."""
    material, nodes = _material("skin")
    shader = nodes.principled(
        Base_Color=nodes.attribute("tint", "Vector"),
        Roughness=nodes.attribute("rough"),
        Subsurface_Weight=1.0,
        Subsurface_Radius=_SCATTER_OF_SKIN,
        Subsurface_Scale=look.scatter,
        Specular_IOR_Level=0.42,
        Coat_Weight=nodes.math("MULTIPLY", nodes.attribute("inside"), 0.6),
        Coat_Roughness=0.25,
    )
    nodes.finish(shader)
    return material


def mouth_material(
    colour: tuple[float, float, float], roughness: float, grain: float
) -> bpy.types.Material:
    """Make gums or a tongue: wet, slightly bumpy; `grain` is bumps per metre."""
    material, nodes = _material("mouth")
    dark = tuple(0.75 * value for value in colour)
    shader = nodes.principled(
        **nodes.grainy(colour, dark, grain),
        Roughness=roughness,
        Subsurface_Weight=0.45,
        Subsurface_Radius=(1.0, 0.4, 0.3),
        Subsurface_Scale=0.002,
        Coat_Weight=0.4,
        Coat_Roughness=0.15,
    )
    nodes.finish(shader)
    return material


def tooth_material(look: Look) -> bpy.types.Material:
    """Teeth from the vertex attributes `from_edge` and `behind`."""
    material, nodes = _material("teeth")
    neck = nodes.ramp(nodes.attribute("from_edge"), 0.35, 1.0)
    colour = nodes.mix(neck, look.teeth, look.teeth * (0.85, 0.72, 0.55))
    stains = nodes.noise(nodes.add("ShaderNodeTexCoord").outputs["Object"], 400.0)
    stained = look.teeth * (0.86, 0.8, 0.68)
    colour = nodes.mix(nodes.math("MULTIPLY", stains, 0.35), colour, stained)
    colour = nodes.mix(nodes.attribute("behind"), colour, (0.12, 0.06, 0.04))  # molars in the dark
    shader = nodes.principled(
        Base_Color=colour,
        Roughness=0.22,
        Specular_IOR_Level=0.6,
        Coat_Weight=0.35,
        Coat_Roughness=0.08,
        Subsurface_Weight=0.15,
        Subsurface_Scale=0.002,
        Subsurface_Radius=(1, 0.8, 0.6),
    )
    nodes.finish(shader)
    return material


def hair_material(colour: Floats, grey: float) -> bpy.types.Material:
    """Strands of one colour, a share of them grey."""
    material, nodes = _material("hair")
    chance = nodes.add("ShaderNodeHairInfo").outputs["Random"]
    mixed = nodes.mix(nodes.math("MULTIPLY", chance, 0.6), colour, colour * 0.45)
    if grey > 0:
        another = nodes.noise(nodes.add("ShaderNodeCombineXYZ", {0: chance}), 999.0, 0.0)
        turned = nodes.math("GREATER_THAN", another, 1 - grey * 0.75)
        mixed = nodes.mix(turned, mixed, (0.55, 0.55, 0.54))
    nodes.finish(nodes.principled(Base_Color=mixed, Roughness=0.42, Specular_IOR_Level=0.55))
    return material


def lash_material(opacity: float) -> bpy.types.Material:
    """Lashes: cards with gaps across, by their uvs."""
    material, nodes = _material("lash")
    gaps = nodes.ramp(nodes.noise(nodes.add("ShaderNodeUVMap"), 260.0, 1.0), 0.45, 0.6)
    alpha = nodes.math("MULTIPLY", gaps, opacity)
    nodes.finish(nodes.principled(Base_Color=(0.012, 0.009, 0.008), Roughness=0.6, Alpha=alpha))
    return material


def eye_material(rng: np.random.Generator, look: Look) -> bpy.types.Material:
    """An eyeball from the attributes `theta` and `angle` (polar, about the pupil) and `rest`."""
    material, nodes = _material("eye")
    theta, angle = nodes.attribute("theta"), nodes.attribute("angle")
    pupil = rng.uniform(*_PUPIL)
    ring = {
        axis: nodes.math("MULTIPLY", nodes.math(wave, angle), 4.0)
        for axis, wave in enumerate(("SINE", "COSINE"))
    }
    ring[2] = nodes.math("MULTIPLY", theta, 3.0)
    fibres = nodes.ramp(nodes.noise(nodes.add("ShaderNodeCombineXYZ", ring), 3.0, 4.0), 0.3, 0.7)
    iris = nodes.mix(fibres, look.iris * 0.35, look.iris)
    iris = nodes.mix(nodes.ramp(theta, _IRIS - 0.11, _IRIS), iris, look.iris * 0.15)
    iris = nodes.mix(nodes.ramp(theta, pupil + 0.02, pupil), iris, (0.003, 0.003, 0.003))
    white = np.array([0.74, 0.68, 0.63]) * rng.uniform(0.78, 1.0)
    veins = nodes.ramp(nodes.noise(nodes.attribute("rest", "Vector"), 4.0, 6.0, 0.75), 0.42, 0.72)
    veins = nodes.math("MULTIPLY", nodes.ramp(theta, 0.5, 1.25), veins)
    sclera = nodes.mix(veins, white, white * (0.95, 0.6, 0.56))
    shader = nodes.principled(
        Base_Color=nodes.mix(nodes.ramp(theta, _IRIS + 0.025, _IRIS - 0.025), sclera, iris),
        Roughness=0.12,
        Coat_Weight=1.0,
        Coat_Roughness=0.02,
        Subsurface_Weight=0.1,
        Subsurface_Scale=0.001,
        Subsurface_Radius=(1, 0.5, 0.4),
    )
    nodes.finish(shader)
    return material


def cloth_material(colour: Floats) -> bpy.types.Material:
    material, nodes = _material("cloth")
    weave = nodes.grainy(colour, colour * 0.75, 900.0)
    nodes.finish(nodes.principled(**weave, Roughness=0.9, Specular_IOR_Level=0.2))
    return material


def frame_material(colour: Floats) -> bpy.types.Material:
    material, nodes = _material("frame")
    nodes.finish(nodes.principled(Base_Color=colour, Roughness=0.25, Specular_IOR_Level=0.6))
    return material


def lens_material() -> bpy.types.Material:
    """Glass that reflects a little; without refraction, which would need many samples."""
    material, nodes = _material("lens")
    mix = nodes.add("ShaderNodeMixShader", {0: 0.02})
    clear = nodes.add("ShaderNodeBsdfTransparent")
    glossy = nodes.add("ShaderNodeBsdfGlossy", {"Roughness": 0.02})
    for index, shader in enumerate((clear, glossy), 1):
        nodes.tree.links.new(shader.outputs[0], mix.inputs[index])
    nodes.finish(mix)
    return material
