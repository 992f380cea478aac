"""Renders photographic talking heads, with their landmarks, for training; `make render-heads`.

People are MakeHuman's mesh (CC0), rendered by Blender's Cycles. Blender's module `bpy` is GPL and
needs its own environment (.venv-render), so this program is apart from the library: nothing in
`latentsync` imports it, and it shares no process with it.

`__main__`, `takes` and `clip` run in the library's environment: they draw who says what, and start
`worker` in .venv-render, which renders one person after the other. The rest is `worker`'s:

    plan assets makehuman sliders people     what a person does; the mesh; shape and look
    expressions neck                    the mesh of one moment
    surface skin teeth hair glasses     the parts of a head, as arrays
    camera lighting                     where the camera stands; lamps and the room's panorama
    materials objects scene worker      Blender: the only files that import bpy
"""
