"""One person in Blender: built once, then posed and rendered moment by moment."""

import math
from dataclasses import dataclass
from pathlib import Path

import bpy
import cv2
import mathutils
import numpy as np
from numpy.typing import NDArray

from . import materials
from .camera import SENSOR_MM, Camera
from .expressions import Expression, draw_speaker, face_units, posed
from .glasses import draw_glasses
from .hair import BROW_X, BROW_Y, Strands, draw_beard, draw_brows, draw_scalp
from .lighting import Lamp, Lighting, draw_lighting
from .makehuman import Floats, Ints, MakeHuman
from .neck import HeadPose, bend, body_share
from .objects import (
    add_attribute,
    add_eye,
    add_glasses,
    add_mesh,
    add_strands,
    move_mesh,
    move_strands,
    normals_of,
    to_blender,
)
from .people import Look, Shape, draw_look, draw_shape
from .skin import Masks, paint_skin, skin_masks
from .surface import Follower, Roots, subdivide
from .teeth import draw_jaw

__all__ = ["HeadScene"]

SUBDIVISIONS = 2  # of the skin: edges of 0.8 to 1.5 mm
_SKIN_STARTS = 4.9  # dm; skin below is dropped
_COLLARS = (5.3, 5.5, 5.62, 5.75, 9.0)  # dm, where the shirt ends
_MAX_EYE_TURN = (0.45, 0.35)  # rad at a gaze of 1, sideways and up
# Found by hand on the mesh's middle line.
_LIPS = {"upper_outer": 455, "upper_inner": 474, "lower_inner": 494, "lower_outer": 492}
_CHIN, _NOSE_TIP, _NOSE_BASE, _NOSE_BRIDGE = 5225, 297, 5072, 131
_MOUTH_CORNER = (0.246, 6.612, 1.425)  # rest coordinates, dm
_CORNEA = (0.0, 0.0, 0.14)  # dm, from the eyeball's centre to its front
# Detectors see brows and nose higher than the mesh has them: MediaPipe FaceMesh on 108 crops of 9
# people, in distances of the eyes.
_BROW_LIFT, _NOSE_LIFT = 0.08, 0.09


@dataclass(frozen=True)
class _Moving:
    """A part that follows the mesh."""

    item: bpy.types.Object
    follower: Follower


@dataclass(frozen=True)
class _MovingHair:
    item: bpy.types.Object
    roots: Roots
    offsets: Floats  # (n, k, 3) dm from the roots


class HeadScene:
    """A person and a room in Blender's one scene, which this replaces."""

    def __init__(self, data: MakeHuman, seed: int) -> None:
        bpy.ops.wm.read_factory_settings(use_empty=True)  # else memory grows with each person
        self.data, self.scene = data, bpy.context.scene
        shape_rng, look_rng, self._rng, light_rng = (
            np.random.default_rng([seed, part]) for part in range(4)
        )
        self.shape: Shape = draw_shape(data, shape_rng)
        self.look: Look = draw_look(self.shape, look_rng)
        self.speaker = draw_speaker(look_rng)
        self.light: Lighting = draw_lighting(light_rng)
        self.eyes = tuple(
            self.shape.vertices[data.groups[f"helper-{side}-eye"]].mean(axis=0) for side in "lr"
        )  # the person's left one first
        self.centre = self.shape.vertices[[_NOSE_TIP, _NOSE_BASE, _NOSE_BRIDGE, _CHIN]].mean(axis=0)
        self.centre[2] -= 0.5
        self._share = body_share(data.vertices)
        self._vertices = self.shape.vertices
        self._brow_landmarks = _find_brows(data)
        self._corners = [
            data.nearest((sign * _MOUTH_CORNER[0], *_MOUTH_CORNER[1:])) for sign in (-1, 1)
        ]
        self._moving: list[_Moving] = []
        self._hair: list[_MovingHair] = []
        masks, ears = self._build_skin()
        self._build_shirt()
        self._build_mouth()
        self._build_eyes()
        self._build_hair(masks, ears)
        self._build_light()
        self._build_camera()

    # -- Building ----------------------------------------------------------------------------------

    def _faces_of(self, part: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Return the vertices of some faces, and the faces by place among them."""
        vertices, faces = np.unique(self.data.faces[part], return_inverse=True)
        return vertices, faces.reshape(-1, 4)

    def _build_skin(self) -> tuple[Masks, Floats]:
        """Return the masks and the ears' mask at the vertices of the mesh."""
        data, rest = self.data, self.data.vertices
        height = rest[data.faces][:, :, 1].min(axis=1)
        chosen = (data.face_groups == "body") & (height > _SKIN_STARTS)
        self._skin_vertices, faces = self._faces_of(chosen)
        self._triangles = np.concatenate(
            [data.faces[chosen][:, corners] for corners in ([0, 1, 2], [0, 2, 3])]
        )
        names = ("ears", "eyelids", "lips", "inside-mouth")
        ears, lids, lips, inside = (data.mask(name, data.uvs) for name in names)
        bare = np.clip(1 - lips * 1.5 - ears - lids, 0, 1)
        coarse = skin_masks(rest, lips, inside, bare)
        self._matrix, quads = subdivide(len(self._skin_vertices), faces, SUBDIVISIONS)
        fine = self._matrix @ rest[self._skin_vertices]
        masks = self._fine_masks(fine, bare, inside)
        painted = paint_skin(self._rng, fine, masks, self.look, self.shape.age)
        neutral = self._matrix @ self.shape.vertices[self._skin_vertices]
        self._skin = add_mesh("skin", neutral, quads, materials.skin_material(self.look))
        add_attribute(self._skin, "tint", painted.colour)
        add_attribute(self._skin, "rough", painted.roughness)
        add_attribute(self._skin, "inside", masks.inside)
        self._relief = normals_of(self._skin) * painted.height[:, None]
        return coarse, ears

    def _fine_masks(self, fine: Floats, bare: Floats, inside: Floats) -> Masks:
        """Masks at the subdivided points; around the mouth sharper than the mesh has them.

        Only there are subdivided uvs right: no seam of the texture runs through.
        """
        uvs = self._matrix @ self.data.uvs[self._skin_vertices]
        x, y, z = fine.T
        mouth = (np.abs(x) < 0.45) & (y > 6.3) & (y < 6.9) & (z > 1.2)
        coarse_inside = np.clip(self._matrix @ inside[self._skin_vertices], 0, 1)
        sharp_inside = np.where(mouth, self.data.mask("inside-mouth", uvs), 0.0)
        inner = np.where(mouth | (z < 1.55), np.maximum(coarse_inside, sharp_inside), 0.0)
        lips = np.where(mouth, self.data.mask("lips", uvs), 0.0)
        lips = np.clip(lips * 1.6, 0, 1) * (1 - inner)
        bare = np.clip(self._matrix @ bare[self._skin_vertices], 0, 1) * (1 - lips)
        return skin_masks(fine, lips, inner, bare)

    def _build_shirt(self) -> None:
        rest, faces = self.data.vertices, self.data.faces
        height = rest[faces][:, :, 1]
        chosen = (self.data.face_groups == "helper-tights") & (height.min(axis=1) > 4.4)
        chosen &= height.max(axis=1) < self._rng.choice(_COLLARS)
        self._shirt_vertices, quads = self._faces_of(chosen)
        colour = self._rng.random(3) ** 2.2 * self._rng.uniform(0.2, 0.9)
        points = self.shape.vertices[self._shirt_vertices]
        self._shirt = add_mesh("shirt", points, quads, materials.cloth_material(colour))
        self._shirt.modifiers.new("smooth", "SUBSURF").render_levels = 1

    def _build_mouth(self) -> None:
        data, rest = self.data, self.data.vertices
        tooth = materials.tooth_material(self.look)
        gum = materials.mouth_material((0.42, 0.13, 0.12), 0.3, 150.0)
        for row in ("upper", "lower"):
            group = data.groups[f"helper-{row}-teeth"]
            jaw = draw_jaw(self._rng, rest[group], row == "upper")
            teeth = add_mesh("teeth", jaw.teeth, jaw.teeth_quads, tooth)
            add_attribute(teeth, "from_edge", jaw.from_edge)
            add_attribute(teeth, "behind", jaw.inside)
            self._moving.append(_Moving(teeth, Follower(jaw.teeth, rest, group)))
            ridge = add_mesh("gum", jaw.gum, jaw.gum_quads, gum)
            self._moving.append(_Moving(ridge, Follower(jaw.gum, rest, group)))
        self._tongue_vertices, quads = self._faces_of(data.face_groups == "helper-tongue")
        points = self.shape.vertices[self._tongue_vertices]
        material = materials.mouth_material((0.46, 0.15, 0.14), 0.38, 700.0)
        self._tongue = add_mesh("tongue", points, quads, material)
        self._tongue.modifiers.new("smooth", "SUBSURF").render_levels = 1

    def _build_eyes(self) -> None:
        data, vertices = self.data, self.shape.vertices
        material = materials.eye_material(self._rng, self.look)
        self._eyeballs = []
        for side, centre in zip("lr", self.eyes, strict=True):
            around = vertices[data.groups[f"helper-{side}-eye"]] - centre
            radius = float(np.linalg.norm(around, axis=1).mean()) * 0.985
            self._eyeballs.append(add_eye(material, centre, radius))
        lashes = [name for name in data.groups if "eyelashes" in name]
        chosen = np.isin(data.face_groups, lashes)
        self._lash_vertices, quads = self._faces_of(chosen)
        uvs = data.uvs[data.faces[chosen]]
        points = vertices[self._lash_vertices]
        self._lashes = add_mesh(
            "lashes", points, quads, materials.lash_material(self.look.lashes), uvs
        )
        if self.look.glasses:
            add_glasses(draw_glasses(self._rng, vertices, (self.eyes[0], self.eyes[1])))

    def _build_hair(self, masks: Masks, ears: Floats) -> None:
        rng, data, shape, look = self._rng, self.data, self.shape, self.look
        brows = draw_brows(rng, data, shape, self._triangles)
        self._add_moving(brows, materials.hair_material(look.brows, look.grey * 0.6))
        material = materials.hair_material(look.hair, look.grey)
        if look.beard in ("short", "full", "moustache"):
            beard = draw_beard(rng, data, shape, self._triangles, masks, look.beard)
            self._add_moving(beard, material)
        if look.cut != "bald":
            scalp = draw_scalp(rng, data, shape, self._triangles, ears, look)
            add_strands("scalp", scalp, material)

    def _add_moving(self, strands: Strands, material: bpy.types.Material) -> None:
        item = add_strands("hair", strands, material)
        offsets = strands.points - strands.roots.at(self.shape.vertices)[:, None]
        self._hair.append(_MovingHair(item, strands.roots, offsets))

    def _build_light(self) -> None:
        world = bpy.data.worlds.new("room")
        self.scene.world, world.use_nodes = world, True
        height, width, _ = self.light.room.shape
        picture = bpy.data.images.new("room", width, height, float_buffer=True)
        pixels = np.concatenate([self.light.room, np.ones((height, width, 1))], axis=2)
        picture.pixels.foreach_set(pixels.astype(np.float32).ravel())
        picture.update()
        nodes = materials.Nodes(world.node_tree)
        direction = nodes.add("ShaderNodeTexCoord").outputs["Generated"]
        self._turn = nodes.add("ShaderNodeMapping", {"Vector": direction})
        panorama = nodes.add("ShaderNodeTexEnvironment", {"Vector": self._turn}, image=picture)
        self._turn_room(HeadPose())
        inputs = {"Color": panorama, "Strength": self.light.strength}
        shader = nodes.add("ShaderNodeBackground", inputs)
        output = nodes.add("ShaderNodeOutputWorld")
        world.node_tree.links.new(shader.outputs[0], output.inputs[0])
        self._lamps = [self._add_lamp(lamp) for lamp in self.light.lamps]
        settings = self.scene.view_settings
        settings.view_transform = self.light.tone_curve
        settings.look = "AgX - Medium High Contrast" if self.light.tone_curve == "AgX" else "None"

    def _add_lamp(self, lamp: Lamp) -> bpy.types.Object:
        light = bpy.data.lights.new("lamp", "AREA")
        light.shape, light.size, light.energy = "DISK", lamp.size_m, lamp.watts
        light.color = lamp.colour.tolist()
        item = bpy.data.objects.new("lamp", light)
        self.scene.collection.objects.link(item)
        return item

    def _build_camera(self) -> None:
        self._camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        self.scene.collection.objects.link(self._camera)
        self.scene.camera = self._camera
        self._camera.data.sensor_fit, self._camera.data.sensor_width = "HORIZONTAL", SENSOR_MM
        self._camera.data.clip_start = 0.05
        render, cycles = self.scene.render, self.scene.cycles
        render.engine, render.image_settings.file_format = "CYCLES", "PNG"
        render.use_persistent_data = True
        render.threads_mode, render.threads = "FIXED", 1  # two processes beat two threads
        cycles.device, cycles.samples = "CPU", 8
        cycles.use_adaptive_sampling, cycles.adaptive_threshold = True, 0.06
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
        cycles.max_bounces, cycles.transparent_max_bounces = 4, 4
        cycles.diffuse_bounces = cycles.glossy_bounces = cycles.transmission_bounces = 2
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.sample_clamp_indirect, cycles.sample_clamp_direct = 3.0, 20.0
        cycles.pixel_filter_type, cycles.filter_width = "BLACKMAN_HARRIS", 1.5
        cycles.use_auto_tile, cycles.debug_use_hair_bvh = False, True
        self.scene.cycles_curves.shape, self.scene.cycles_curves.subdivisions = "RIBBONS", 1

    # -- One moment --------------------------------------------------------------------------------

    def pose(
        self, track: Floats, expression: Expression, head: HeadPose, *, turn_room: bool = False
    ) -> None:
        """Move the mouth, the face and the head.

        Args:
            turn_room: the panorama stays where it is when the head turns, as lamps always do. It
                trebles the time of a small picture, in which hardly any background is seen.
        """
        units = face_units(track, self.speaker, expression)
        self._vertices = posed(self.data, self.shape.vertices, units, float(track[4]))
        vertices = bend(self._vertices, self._share, head)
        move_mesh(self._skin, self._matrix @ vertices[self._skin_vertices] + self._relief)
        move_mesh(self._shirt, vertices[self._shirt_vertices])
        move_mesh(self._tongue, vertices[self._tongue_vertices])
        move_mesh(self._lashes, vertices[self._lash_vertices])
        for part in self._moving:
            move_mesh(part.item, part.follower.at(vertices))
        for hair in self._hair:
            move_strands(hair.item, hair.roots.at(vertices)[:, None] + hair.offsets)
        sideways, up = _MAX_EYE_TURN
        turn = (math.pi / 2 - up * expression.gaze_y, 0, sideways * expression.gaze_x)
        for eye in self._eyeballs:
            eye.rotation_euler = mathutils.Euler(turn, "XYZ")
        self._turn_lamps(head)
        if turn_room:
            self._turn_room(head)

    def _turn_lamps(self, head: HeadPose) -> None:
        """Turn the lamps about the head, which looks straight ahead."""
        for item, lamp in zip(self._lamps, self.light.lamps, strict=True):
            place = self.shape.vertices[_NOSE_TIP] + lamp.direction * lamp.distance_m * 10
            at = mathutils.Vector(to_blender(head.to_head(place)))
            towards = mathutils.Vector(to_blender(self.shape.vertices[_NOSE_TIP])) - at
            item.location, item.rotation_euler = at, towards.to_track_quat("-Z", "Y").to_euler()

    def _turn_room(self, head: HeadPose) -> None:
        axes = to_blender(np.eye(3)) * 10  # rows: MakeHuman's axes in Blender's
        rotation = mathutils.Matrix((axes.T @ head.rotation @ axes).tolist())
        spin = mathutils.Matrix.Rotation(self.light.turn, 3, "Z")
        self._turn.inputs["Rotation"].default_value = (spin @ rotation).to_euler()

    def aim(self, camera: Camera) -> None:
        """See through a camera."""
        axes = to_blender(camera.axes) * 10
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes.T, to_blender(camera.position)
        self._camera.matrix_world = mathutils.Matrix(matrix.tolist())
        lens = self._camera.data
        lens.lens, (lens.shift_x, lens.shift_y) = camera.lens_mm, camera.shift
        render = self.scene.render
        render.resolution_x, render.resolution_y = camera.size
        render.pixel_aspect_x, render.pixel_aspect_y = 1.0, camera.pixel_aspect

    def render(self, path: Path) -> NDArray[np.uint8]:
        """Render through `path` (PNG); (height, width, 3) RGB."""
        self.scene.render.filepath = str(path)
        bpy.ops.render.render(write_still=True)
        picture = cv2.imread(str(path))
        if picture is None:
            raise OSError(f"Blender wrote no picture to {path}")
        return np.ascontiguousarray(picture[..., ::-1])

    def expose(self, path: Path) -> None:
        """Set the exposure so that the face is as bright as its skin asks for, by small renders."""
        goal = 0.42 + 0.14 * (0.55 - self.look.melanin) + 0.07 * self.light.exposure
        self.scene.render.resolution_percentage = 25
        for _ in range(3):
            picture = self.render(path)
            rows, columns = (slice(side // 5, 4 * side // 5) for side in picture.shape[:2])
            mean = picture[rows, columns].mean() / 255
            step = 1.5 * math.log2(goal / max(mean, 0.01))
            self.scene.view_settings.exposure += float(np.clip(step, -4, 4))
            if abs(step) < 0.25:
                break
        self.scene.render.resolution_percentage = 100

    # -- What is true of the moment ----------------------------------------------------------------

    @property
    def eye_distance(self) -> float:
        """dm."""
        return float(np.linalg.norm(self.eyes[0] - self.eyes[1]))

    def anchors(self, neutral: bool = True) -> Floats:
        """(3, 3) brow centres (picture's left first) and nose base, as detectors see them."""
        vertices = self.shape.vertices if neutral else self._vertices
        brows = [vertices[ids].mean(axis=0) for ids in self._brow_landmarks]
        nose = (vertices[_NOSE_TIP] * 2 + vertices[_NOSE_BASE]) / 3
        lift = np.array([_BROW_LIFT, _BROW_LIFT, _NOSE_LIFT]) * self.eye_distance
        return np.stack([*brows, nose]) + lift[:, None] * (0.0, 1.0, 0.0)

    def landmarks(self) -> Floats:
        """(12, 3) dm, in the order of `latentsync.training.synthetic.LANDMARKS`."""
        left_brow, right_brow, nose = self.anchors(neutral=False)
        left_eye, right_eye = self.eyes[1] + _CORNEA, self.eyes[0] + _CORNEA
        corners = self._vertices[self._corners]
        lips = self._vertices[list(_LIPS.values())]
        chin = self._vertices[_CHIN]
        return np.stack([left_brow, right_brow, left_eye, right_eye, nose, *corners, *lips, chin])

    def mouth(self) -> tuple[float, float]:
        """Opening and width in distances of the eyes; a mouth at rest is shut."""
        upper, lower = _LIPS["upper_inner"], _LIPS["lower_inner"]
        gap, rest = (v[upper, 1] - v[lower, 1] for v in (self._vertices, self.shape.vertices))
        left, right = self._vertices[self._corners]
        width = float(np.linalg.norm(left - right))
        return max(0.0, float(gap - rest)) / self.eye_distance, width / self.eye_distance


def _find_brows(data: MakeHuman) -> list[list[int]]:
    """Vertices along each brow, the picture's left one first.

    Detectors run them further out than the middle of the hairs.
    """
    body = data.groups["body"]
    front = body[(data.vertices[body, 2] > 0.9) & (data.vertices[body, 1] > 7.3)]
    x = np.linspace(0.17, 0.56, 7)
    y = np.interp(x, BROW_X, BROW_Y)
    found = []
    for side in (-1, 1):
        line = np.stack([side * x, y], axis=1)
        distance = np.linalg.norm(data.vertices[front][None, :, :2] - line[:, None], axis=2)
        found.append(front[distance.argmin(axis=1)].tolist())
    return found
