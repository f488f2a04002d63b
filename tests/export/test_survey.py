"""The table of families: one row a graph, and the reason where there is none."""

import pytest
from click.testing import CliRunner

from tfx.errors import ExportError, ParityError
from tfx.export import survey as module
from tfx.export.families import FAMILIES
from tfx.export.survey import Finding, main, survey, table

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
        Finding(BERT, "", attention=2, softmax=0, error=1.234e-6, seconds=2.25),
        Finding(VIT, "encoder", attention=1, softmax=3, error=0.5, seconds=61.0),
        Finding(VIT, "decoder", "it differs:\n  logits", seconds=0.04),
    ]
    assert table(found).splitlines() == [
        "| family | class | graph | status | Attention fused | largest error | export |",
        "|---|---|---|---|---|---|---|",
        "| BERT | `BertModel` | whole | ok | 2 of 2 | 1.2e-06 | 2.2 s |",
        "| ViT | `ViTForImageClassification` | encoder | ok | 1 of 4 | 5.0e-01 | 61.0 s |",
        "| ViT | `ViTForImageClassification` | decoder | it differs: |  |  | 0.0 s |",
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
    assert text.endswith("|\n")


@pytest.mark.parametrize("arguments", [["--task", "text-classification"], ["--rows", "rows.jsonl"]])
def test_options_of_the_wide_net(arguments, nothing_traced):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "--task and --rows are for --wide" in done.stderr
    assert nothing_traced == []
