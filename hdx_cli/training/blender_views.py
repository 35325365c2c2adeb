"""Run by Blender: ``blender -b -P blender_views.py -- FOLDER`` renders FOLDER/job.json of FOLDER/scan.npz, unlit.

Written from the documentation of Blender 4 (bpy); it never ran where this was made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def render(folder: Path) -> None:
    """One picture of one camera, straight alpha, by emission alone."""
    import bpy
    import numpy as np
    from mathutils import Matrix

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    data = np.load(folder / "scan.npz", allow_pickle=False)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    mesh = bpy.data.meshes.new("scan")
    mesh.from_pydata(data["vertices"].tolist(), [], data["faces"].tolist())
    mesh.uv_layers.new(name="uv").data.foreach_set("uv", data["uv"].astype(np.float32).ravel())
    tint = mesh.color_attributes.new(name="tint", type="BYTE_COLOR", domain="POINT")
    tint.data.foreach_set("color_srgb", data["colours"].astype(np.float32).ravel())
    for number in range(-1, int(data["texture"].max()) + 1):
        mesh.materials.append(_material(bpy, folder / f"texture{number}.png" if number >= 0 else None))
    mesh.polygons.foreach_set("material_index", (data["texture"] + 1).astype(np.int32))
    mesh.update()
    scene.collection.objects.link(bpy.data.objects.new("scan", mesh))

    camera = bpy.data.cameras.new("camera")
    seen_from = bpy.data.objects.new("camera", camera)
    scene.collection.objects.link(seen_from)
    scene.camera = seen_from
    # Blender's cameras look along -z with y up, OpenCV's along z with y down
    seen_from.matrix_world = Matrix(job["viewmat"]).inverted() @ Matrix.Diagonal((1.0, -1.0, -1.0, 1.0))
    (fx, _, cx), (_, fy, cy), _ = job["K"]
    width, height = job["width"], job["height"]
    wide = max(width, height)
    camera.sensor_fit = "HORIZONTAL" if width >= height else "VERTICAL"
    camera.sensor_width = camera.sensor_height = 36.0
    camera.lens = 36.0 * (fx if width >= height else fy) / wide
    camera.shift_x, camera.shift_y = (width / 2 - cx) / wide, (cy - height / 2) / wide
    camera.clip_start, camera.clip_end = 0.01, 1000.0
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising = job["samples"], False
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = width, height, 100
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.render.filepath = job["out"]
    bpy.ops.render.render(write_still=True)


def _material(bpy, image: Path | None):
    """Emission of texture times vertex colour, transparent where the texture is."""
    material = bpy.data.materials.new("surface")
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    tint = nodes.new("ShaderNodeVertexColor")
    tint.layer_name = "tint"
    colour, alpha = tint.outputs["Color"], tint.outputs["Alpha"]
    if image is not None:
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = bpy.data.images.load(str(image))
        product = nodes.new("ShaderNodeVectorMath")
        product.operation = "MULTIPLY"
        links.new(texture.outputs["Color"], product.inputs[0])
        links.new(colour, product.inputs[1])
        colour, alpha = product.outputs[0], texture.outputs["Alpha"]
    emission, clear = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeBsdfTransparent")
    mix, output = nodes.new("ShaderNodeMixShader"), nodes.new("ShaderNodeOutputMaterial")
    links.new(colour, emission.inputs["Color"])
    links.new(alpha, mix.inputs["Fac"])
    links.new(clear.outputs[0], mix.inputs[1])
    links.new(emission.outputs[0], mix.inputs[2])
    links.new(mix.outputs[0], output.inputs["Surface"])
    return material


if __name__ == "__main__":
    render(Path(sys.argv[sys.argv.index("--") + 1]))
