"""The table of families: one row a graph, and the reason where there is none."""

import dataclasses
import os

import pytest
import transformers
from click.testing import CliRunner

from tfx.errors import ExportError, ParityError
from tfx.export import survey as module
from tfx.export.families import FAMILIES
from tfx.export.real_sizes import REAL_SIZES, write_config
from tfx.export.survey import (
    Finding,
    main,
    real_size_table,
    survey,
    survey_real_sizes,
    table,
)

BERT = FAMILIES[0]
(VIT,) = (family for family in FAMILIES if family.name == "ViT")


@pytest.fixture
def nothing_traced(monkeypatch):
    """Exporting only notes what it was asked for."""
    asked = []

    def export(source, path, recipe):
        asked.append((source, path, recipe))
        raise ExportError("a planted fault")

    monkeypatch.setattr(module, "export_bundles", export)
    return asked


def test_table():
    found = [
        Finding(BERT, "", attention=2, softmax=0, error=1.234e-6, seconds=2.25, cpu_s=1.5),
        Finding(VIT, "encoder", attention=1, softmax=3, error=0.5, seconds=61.0),
        Finding(VIT, "decoder", "it differs:\n  logits", seconds=0.04),
    ]
    assert table(found).splitlines() == [
        "| family | class | graph | status | Attention fused | largest error | export | CPU |",
        "|---|---|---|---|---|---|---|---|",
        "| BERT | `BertModel` | whole | ok | 2 of 2 | 1.2e-06 | 2.2 s | 1.5 s |",
        "| ViT | `ViTForImageClassification` | encoder | ok | 1 of 4 | 5.0e-01 | 61.0 s | 0.0 s |",
        "| ViT | `ViTForImageClassification` | decoder | it differs: |  |  | 0.0 s | 0.0 s |",
    ]


def test_every_row_has_the_columns_of_the_table():
    reason = "Conv takes float | half, got `int`"
    head, rule, row = table([Finding(BERT, "", reason)]).splitlines()
    assert r"float \| half" in row
    cells = row.replace(r"\|", "").count("|")
    assert cells == head.count("|") == rule.count("|")


def test_table_of_nothing():
    assert len(table([]).splitlines()) == 2


@pytest.mark.parametrize("kind", [ExportError, ParityError])
def test_family_that_fails_shows_its_reason(kind, monkeypatch):
    def fail(*_):
        raise kind("graph and PyTorch are not the same: logits", hint="Look.")

    monkeypatch.setattr(module, "export_bundles", fail)
    found = survey([BERT, VIT])
    assert [one.family for one in found] == [BERT, VIT]
    assert {one.problem for one in found} == {"graph and PyTorch are not the same: logits"}
    rows = table(found).splitlines()[2:]
    assert all("| graph and PyTorch are not the same: logits |" in row for row in rows)


def test_fault_of_our_own_is_not_a_finding(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "export_bundles", fail)
    with pytest.raises(ZeroDivisionError):
        survey([BERT])


def test_a_real_family():
    (found,) = survey([VIT])
    assert (found.family, found.part, found.problem) == (VIT, "", "")
    assert (found.attention, found.softmax) == (2, 0)
    assert 0 < found.error < 1e-4
    assert found.seconds > 0
    assert found.cpu_s > 0


def test_families_are_exported_from_a_folder_as_a_user_would(nothing_traced):
    survey([BERT])
    ((source, path, recipe),) = nothing_traced
    assert isinstance(source, str)
    assert path.name == "bundle"
    assert recipe.task == "auto"


@pytest.mark.parametrize(("name", "count"), [("vit", 1), ("CLIP", 3), ("nothing", 0)])
def test_command_takes_parts_of_names(name, count, nothing_traced):
    done = CliRunner().invoke(main, [name])
    assert done.exit_code == 0, done.output
    assert len(nothing_traced) == count
    assert done.stdout.count("a planted fault") == count
    assert done.stderr.count(" ...") == count


def test_command_writes_a_file(nothing_traced, tmp_path):
    page = tmp_path / "families.md"
    done = CliRunner().invoke(main, ["deit", "-o", str(page)])
    assert (done.exit_code, done.stdout) == (0, "")
    text = page.read_text()
    assert text.startswith("# Families\n\n")
    assert "`python -m tfx.export.survey -o docs/families.md`" in text
    assert "CPUs that had up to" in text  # what its seconds were measured beside
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("|"))
    assert text.endswith("|\n")


def test_the_wide_net_says_how_its_rows_were_gathered(tmp_path):
    page = tmp_path / "wide-net.md"
    done = CliRunner().invoke(main, ["albert", "--wide", "--jobs", "0", "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "several versions of tfx: a row that failed is tried again" in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("|"))


@pytest.mark.parametrize("arguments", [["--task", "text-classification"], ["--rows", "rows.jsonl"]])
def test_options_of_the_wide_net(arguments, nothing_traced):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "--task and --rows are for --wide" in done.stderr
    assert nothing_traced == []


# real sizes


def test_real_sizes_are_those_of_the_families():
    tiny = {family.class_name for family in FAMILIES}
    assert not {family.class_name for family in REAL_SIZES} - tiny
    names = [family.name for family in REAL_SIZES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", REAL_SIZES, ids=lambda family: family.name)
def test_a_real_size_is_a_configuration_and_no_weights(family, tmp_path):
    write_config(family, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json"]
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.architectures == [family.class_name]
    assert isinstance(config, getattr(transformers, family.config))


def test_real_sizes_are_exported_in_a_process_of_their_own():
    (found,) = survey_real_sizes([VIT])  # as small as any
    assert (found.family.class_name, found.problem) == (VIT.class_name, "")
    assert (found.attention, found.softmax) == (2, 0)
    assert found.parameters > 1000
    assert found.peak_bytes > 100e6  # what the libraries alone take


def test_a_process_that_is_killed_is_a_row():
    (found,) = survey_real_sizes([dataclasses.replace(VIT, sizes=Killer())])
    assert found.problem == "the process was killed"
    assert found.seconds > 0


class Killer(dict):
    """Sizes that end the process that unpickles them."""

    def __reduce__(self):
        return os._exit, (1,)


def test_table_of_real_sizes():
    found = [
        Finding(BERT, "", attention=12, error=1e-6, seconds=9.0, parameters=109_482_240),
        Finding(VIT, "", "the process was killed", seconds=1.0),
    ]
    found[0] = dataclasses.replace(found[0], peak_bytes=2_100_000_000)
    head, rule, bert, vit = real_size_table(found).splitlines()
    assert head.endswith("| export | CPU | parameters | peak memory |")
    assert bert.endswith("| 12 of 12 | 1.0e-06 | 9.0 s | 0.0 s | 109 M | 2.1 GB |")
    assert vit.endswith("| the process was killed |  |  | 1.0 s | 0.0 s |  |  |")
    assert len({row.count("|") for row in (head, rule, bert, vit)}) == 1


def test_command_of_real_sizes(monkeypatch):
    asked = []

    def survey_nothing(families, on_family):
        asked.extend(families)
        for family in families:
            on_family(family)
        return []

    monkeypatch.setattr(module, "survey_real_sizes", survey_nothing)
    done = CliRunner().invoke(main, ["--real-size", "gpt", "swin"])
    assert done.exit_code == 0, done.output
    assert [family.name for family in asked] == ["GPT-2", "GPT-Neo 125M", "Swin tiny"]
    assert done.stdout.startswith("# Real sizes\n\n")
    assert done.stderr.count(" ...") == 3


def test_one_walk_at_a_time(nothing_traced):
    done = CliRunner().invoke(main, ["--wide", "--real-size"])
    assert done.exit_code == 2
    assert "--wide and --real-size exclude each other" in done.stderr
