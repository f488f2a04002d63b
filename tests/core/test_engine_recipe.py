from pathlib import Path

from support.bundles import manifest

from tfx.manifest import FileEntry, Manifest, Step
from tfx.recipe import Changes, EngineBuild, EngineRecipe, Source, SourceKind, Target
from tfx.signature import ShapeRange

PROFILES = ({"batch": ShapeRange(1, 1, 1)}, {"batch": ShapeRange(2, 8, 16)})
BUILD = EngineBuild(
    EngineRecipe(
        Target.TENSORRT, profiles=PROFILES, workspace_bytes=1 << 20, strip=True, refit=True
    ),
    version="11.0.0",
    gpus=("sm89",),
    profiles=PROFILES,
    device="NVIDIA L4",
    driver="12.8",
    attention=2,
    fused_kernels=1,
)


def test_a_manifest_keeps_a_build():
    files = (FileEntry("model.engine", 3, "0" * 64),)
    whole = manifest(step=Step.BUILD, model="model.engine", files=files, engine=BUILD)
    assert Manifest.from_json(whole.to_json(), where="") == whole


def test_a_build_as_text():
    assert str(BUILD) == "tensorrt 11.0.0 for sm89 (NVIDIA L4)"
    rtx = EngineBuild(EngineRecipe(gpus=("sm80", "sm89")), "1.7", ("sm80", "sm89"), PROFILES)
    assert str(rtx) == "tensorrt-rtx 1.7 for sm80, sm89"


def test_paths_of_a_moved_source_lead_to_the_same_place(tmp_path):
    before, after = tmp_path / "one", tmp_path / "two" / "deep"
    source = Source(SourceKind.CHECKPOINT, "models/bert", changes=Changes(adapter="../lora"))
    moved = source.moved(before, after)
    assert (moved.location, moved.changes.adapter) == ("../../one/models/bert", "../../lora")
    assert moved.moved(after, before) == source
    factory = Source(SourceKind.FACTORY, "model.py:make")
    assert factory.moved(before, after).location == "../../one/model.py:make"


def test_what_leads_from_the_root_or_nowhere_stays(tmp_path):
    whole = str(tmp_path / "bert")
    for source in (Source(SourceKind.CHECKPOINT, whole), Source(SourceKind.HUB, "org/bert")):
        assert source.moved(tmp_path / "a", tmp_path / "b") == source
    relative = Source(SourceKind.CHECKPOINT, "bert")
    assert relative.moved(tmp_path, Path(f"{tmp_path}/a/..")) is relative
