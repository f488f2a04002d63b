"""Engine bundles as a build writes them, without building: the plan is the stand-in's."""

from support.bundles import TEXT_SIGNATURE, manifest
from support.tensorrt import PLAN
from tfx.bundle import Bundle, create_bundle, open_bundle
from tfx.manifest import Parent, Step
from tfx.recipe import EngineBuild, EngineRecipe


def write_engine_bundle(path, *, recipe=None, plan=PLAN, files=None, **changes) -> Bundle:
    """An engine of the text graph for sm89.

    Args:
        path: Folder to make.
        recipe: What was asked for.
        plan: The engine's bytes.
        files: More files, relative name to bytes.
        **changes: Fields of the build, and of the manifest.
    """
    build = {
        name: changes.pop(name)
        for name in ("version", "gpus", "profiles", "device", "attention", "fused_kernels")
        if name in changes
    }
    build = {
        "version": "1.7.1.116",
        "gpus": ("sm89",),
        "profiles": (TEXT_SIGNATURE.ranges,),
    } | build
    fields = {
        "step": Step.BUILD,
        "model": "model.engine",
        "parent": Parent("tiny", "0" * 64),
        "engine": EngineBuild(recipe or EngineRecipe(gpus=("sm89",)), **build),
    } | changes
    with create_bundle(path) as staging:
        (staging.path / "model.engine").write_bytes(plan)
        for name, data in (files or {}).items():
            (staging.path / name).write_bytes(data)
        staging.finish(manifest(**fields))
    return open_bundle(path)
