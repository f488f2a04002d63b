"""The table of engines: a row a graph, a column a precision, a number for each reason."""

import dataclasses

import pytest
from click.testing import CliRunner
from support.bundles import TEXT_SIGNATURE, write_bundle

from tfx.dtypes import DType
from tfx.errors import BackendError, ExportError, QuantizeError
from tfx.export.engines.engine import Engine
from tfx.export.families import FAMILIES
from tfx.quantize import engine_survey as module
from tfx.quantize.engine_survey import Attempt, bounded, main, survey, table
from tfx.recipe import EngineBuild, EngineRecipe, Source, SourceKind
from tfx.runtime.engines import MODULES
from tfx.signature import UNBOUNDED, ShapeRange, Signature, TensorSpec

BERT = next(family for family in FAMILIES if family.class_name == "BertModel")
GPT2 = next(family for family in FAMILIES if family.name == "GPT-2")
T5 = next(family for family in FAMILIES if family.name == "T5")
SM89 = EngineRecipe(gpus=("sm89",))


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Export, quantize and build that do nothing; their calls are listed."""
    calls = []

    def export_bundles(source, path, recipe, *, cache):
        calls.append(("export", path.parent.name))
        source = Source(SourceKind.CHECKPOINT, "from", part="generator" if cache else "")
        return [write_bundle(path, source=source)]

    def quantize_bundle(parent, path, *, recipe, data):
        calls.append(("quantize", path.name))
        return write_bundle(path)

    def build_engine(bundle, recipe):
        calls.append(("build", bundle.name))
        made = EngineBuild(recipe, "1", recipe.gpus, (), attention=2, fused_kernels=1)
        return Engine(b"plan", made)

    for function in (export_bundles, quantize_bundle, build_engine):
        monkeypatch.setattr(module, function.__name__, function)
    monkeypatch.setattr(module, "proof_data", lambda bundle: None)
    return calls


def test_each_precision_is_built_and_bundles_are_kept(steps, tmp_path):
    found = survey([BERT], SM89, tmp_path, ("fp32", "fp16", "int8"))
    assert [(one.precision, one.problem, one.fused_kernels) for one in found] == [
        ("fp32", "", 1),
        ("fp16", "", 1),
        ("int8", "", 1),
    ]
    assert steps == [
        ("export", "bert-bertmodel"),
        ("build", "bundle"),
        ("quantize", "bundle-fp16"),
        ("build", "bundle-fp16"),
        ("quantize", "bundle-int8"),
        ("build", "bundle-int8"),
    ]
    steps.clear()
    survey([BERT], SM89, tmp_path, ("int8",))
    assert steps == [("build", "bundle-int8")]


def test_what_writes_text_is_built_with_its_cache_too(steps, tmp_path):
    found = survey([GPT2], SM89, tmp_path, ("fp32",))
    assert [one.part for one in found] == ["", "generator"]
    assert [step for step in steps if step[0] == "build"] == [
        ("build", "bundle"),
        ("build", "generator"),
    ]
    steps.clear()
    assert survey([GPT2], SM89, tmp_path, ("fp32",))[1].part == "generator"
    assert [step for step, _ in steps] == ["build", "build"]


def test_a_cache_that_does_not_export_is_a_row_of_its_own(steps, tmp_path, monkeypatch):
    good = module.export_bundles

    def refuse(source, path, recipe, *, cache):
        if cache:
            raise ExportError("odd")
        return good(source, path, recipe, cache=cache)

    monkeypatch.setattr(module, "export_bundles", refuse)
    found = survey([GPT2], SM89, tmp_path, ("fp32",))
    assert [(one.part, one.step) for one in found] == [("generator", "export"), ("", "")]


def test_what_fails_is_said_with_its_step(steps, tmp_path, monkeypatch):
    def refuse(error):
        def step(*arguments, **named):
            raise error

        return step

    monkeypatch.setattr(module, "build_engine", refuse(BackendError("x cannot build bundle: odd")))
    monkeypatch.setattr(module, "quantize_bundle", refuse(QuantizeError("too\n  far\n  off")))
    seen = []
    found = survey([BERT], SM89, tmp_path, ("fp32", "fp16"), seen.append)
    assert [(one.step, one.problem) for one in found] == [
        ("build", "x cannot build: odd"),
        ("quantize", "too far"),
    ]
    assert seen == found
    monkeypatch.setattr(module, "export_bundles", refuse(ExportError("a|b")))
    (one,) = survey([T5], SM89, tmp_path, ("int8",))
    assert (one.step, one.problem) == ("export", "a\\|b")


def test_no_row_names_the_folder_of_the_bundles(steps, tmp_path, monkeypatch):
    def export_bundles(source, path, recipe, *, cache):
        raise ExportError(f"{source} is odd, and so is {path.resolve()}")

    monkeypatch.setattr(module, "export_bundles", export_bundles)
    (one,) = survey([T5], SM89, tmp_path, ("int8",))
    assert one.problem == "source is odd, and so is bundle"


def test_a_table_with_reasons():
    text = table(
        [
            Attempt(BERT, "", "fp32", attention=2),
            Attempt(BERT, "", "fp16", attention=2, fused_kernels=1),
            Attempt(BERT, "", "int8", "odd", "build"),
            Attempt(T5, "encoder", "fp32"),
            Attempt(T5, "encoder", "fp16", "odd", "build"),
            Attempt(T5, "decoder", "fp32", "even", "build"),
        ]
    )
    assert text.splitlines() == [
        "| family | class | graph | fp32 | fp16 | int8 |",
        "|---|---|---|---|---|---|",
        "| BERT | `BertModel` | whole | yes, split | yes, fused | no [1] |",
        "| T5 | `T5ForConditionalGeneration` | encoder | yes | no [1] |  |",
        "| T5 | `T5ForConditionalGeneration` | decoder | no [2] |  |  |",
        "",
        "1. build: odd",
        "2. build: even",
    ]


def test_the_command_writes_a_page(steps, tmp_path):
    page = tmp_path / "tensorrt.md"
    result = CliRunner().invoke(main, ["mpnet", "-o", str(page), "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    assert "MPNet MPNetModel fp32: ok" in result.stderr
    text = page.read_text()
    assert "| MPNet | `MPNetModel` | whole | yes, fused |" in text
    assert "`python -m tfx.quantize.engine_survey -o docs/tensorrt.md`" in text
    printed = CliRunner().invoke(main, ["mpnet", "--precision", "fp32"])
    assert printed.stdout == text + "\n"


def test_rows_are_gone_on_from(steps, tmp_path, monkeypatch):
    store, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    arguments = ["--rows", str(store), "-o", str(page), "--precision", "fp32"]
    good = module.build_engine

    def fail(bundle, recipe):
        raise BackendError("odd")

    monkeypatch.setattr(module, "build_engine", fail)
    CliRunner().invoke(main, ["mpnet", *arguments])
    assert "| MPNet | `MPNetModel` | whole | no [1] |" in page.read_text()
    monkeypatch.setattr(module, "build_engine", good)
    CliRunner().invoke(main, ["mpnet", *arguments])  # what failed is tried again
    CliRunner().invoke(main, ["swin v2", *arguments])
    text = page.read_text()
    assert "| MPNet | `MPNetModel` | whole | yes, fused |" in text
    assert text.index("MPNetModel") < text.index("Swinv2ForImageClassification")
    assert "Not tried yet: BERT; RoBERTa" in text
    steps.clear()
    result = CliRunner().invoke(main, ["mpnet", *arguments])
    assert (result.exit_code, steps, page.read_text()) == (0, [], text)
    result = CliRunner().invoke(main, ["mpnet", "--rows", str(store), "--precision", "fp16"])
    assert [step for step, _ in steps] == ["export", "quantize", "build"]
    steps.clear()
    both = ["--rows", str(store), "--precision", "fp32", "--precision", "bf16"]
    CliRunner().invoke(main, ["mpnet", *both])  # of a family that is begun the rest alone
    assert [name for step, name in steps if step == "build"] == ["bundle-bf16"]
    assert "| MPNet | `MPNetModel` | whole | yes, fused | yes, fused |" in result.stdout


def test_rows_of_families_that_are_gone_are_left_out(tmp_path):
    store = tmp_path / "rows.jsonl"
    assert module.read_attempts(store) == []
    attempt = Attempt(BERT, "encoder", "fp16", "odd", "build", 2, 1, 0.5)
    module.append_attempt(store, attempt)
    store.write_text(store.read_text() + store.read_text().replace("BertModel", "GoneModel"))
    assert module.read_attempts(store) == [attempt]


def test_rows_of_other_versions_are_made_again(tmp_path, monkeypatch):
    store = tmp_path / "rows.jsonl"
    module.append_attempt(store, Attempt(BERT, "", "fp16"))
    monkeypatch.setattr(module, "version_of", lambda name: "99")
    assert module.read_attempts(store) == []


def test_wide_ones_have_float16_around_what_is_lowered(steps, tmp_path, monkeypatch):
    recipes = []

    def quantize_bundle(parent, path, *, recipe, data):
        recipes.append((parent.name, recipe.precision, recipe.rest))
        return write_bundle(path)

    monkeypatch.setattr(module, "quantize_bundle", quantize_bundle)
    survey([BERT, module.WIDE[0]], SM89, tmp_path, ("fp32", "fp16", "int4"))
    assert [(kind, rest) for _, kind, rest in recipes] == [
        (DType.FLOAT16, DType.FLOAT32),
        (DType.INT4, DType.FLOAT32),
        (DType.FLOAT16, DType.FLOAT32),
        (DType.INT4, DType.FLOAT16),
    ]


def test_a_family_builds_in_float16(tmp_path):
    pytest.importorskip(MODULES[SM89.target], reason="needs TensorRT-RTX")
    (one,) = survey([BERT], SM89, tmp_path, ("fp16",))
    assert (one.problem, one.attention) == ("", 2)


def test_axes_without_limits_get_some(tmp_path):
    free = dataclasses.replace(TEXT_SIGNATURE, ranges={"batch": ShapeRange(2, 2, UNBOUNDED)})
    bundle = write_bundle(tmp_path / "a", signature=free)
    assert bounded(SM89, bundle).profiles == (
        {"batch": ShapeRange(2, 16, 64), "sequence": ShapeRange(1, 16, 64)},
    )
    assert bounded(SM89, write_bundle(tmp_path / "b")) is SM89


def test_steps_keep_their_profile_where_prompts_get_a_limit(tmp_path):
    cache = TensorSpec("past_key_0", DType.FLOAT32, ("batch", 2, "capacity", 4))
    ids = TensorSpec("input_ids", DType.INT64, ("batch", "sequence"))
    kept = TensorSpec("logits_to_keep", DType.INT64, ("kept",))
    present = dataclasses.replace(cache, name="present_key_0")
    free = Signature((ids, kept, cache), (present,), {"batch": ShapeRange(1, 2, 4)})
    prompts, steps = bounded(SM89, write_bundle(tmp_path / "a", signature=free)).profiles
    one, some = ShapeRange(1, 1, 1), ShapeRange(1, 16, 64)
    assert prompts == {"sequence": some, "kept": some, "capacity": some}
    assert steps == {"sequence": one, "kept": one, "capacity": some}
