import pytest

from tfx.codec import decode, encode
from tfx.errors import RecipeError
from tfx.recipe import Changes, ExportRecipe, Source, SourceKind, spans

ALL = Changes("lora", (0, 1, 2, 5), ((0, 1), (2, 0)), attentions=True)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1, 2, 5], "0-2,5"),
        ([0, 2, 4], "0,2,4"),
        ([1, 2, 4, 5], "1-2,4-5"),
    ],
)
def test_spans(numbers, text):
    assert spans(numbers) == text


def test_nothing_is_written_where_nothing_was_changed():
    assert not Changes()
    assert encode(ExportRecipe()) == {}
    assert "changes" not in encode(Source(SourceKind.HUB, "a/model"))
    assert str(Source(SourceKind.HUB, "a/model", "Net")) == "hub a/model (Net)"


def test_round_trip():
    recipe = ExportRecipe(changes=ALL)
    assert encode(recipe)["changes"]["drop_heads"] == [[0, 1], [2, 0]]
    assert decode(ExportRecipe, encode(recipe)) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": "a"},
        {"layers": (0,)},
        {"drop_heads": ((0, 0),)},
        {"attentions": True},
    ],
)
def test_each_change_counts(change):
    assert Changes(**change)


def test_source_says_what_was_changed():
    source = Source(SourceKind.HUB, "a/model", "Net", random_weights=True, changes=ALL)
    assert str(source) == (
        "hub a/model (Net), adapter lora, layers 0-2,5, without 2 heads, with attention maps, "
        "random weights"
    )
    assert str(Changes(drop_heads=((0, 0),))) == "without 1 head"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layers": (-1, 0)}, r"layers are [-1, 0], expected numbers from 0"),
        ({"layers": (1, 0)}, r"layers are [1, 0], expected each once and in order"),
        ({"layers": (1, 1)}, r"layers are [1, 1], expected each once and in order"),
        ({"drop_heads": ((0,),)}, "drop_heads are ((0,),), expected (layer, head) from 0"),
        ({"drop_heads": ((0, -1),)}, "drop_heads are ((0, -1),), expected (layer, head) from 0"),
        ({"drop_heads": ((0, 1), (0, 1))}, "drop_heads are ((0, 1), (0, 1)), expected each once"),
        (
            {"layers": (0, 1), "drop_heads": ((0, 1), (2, 0), (3, 1))},
            "heads of layer 2-3 are dropped, and the layer is not kept",
        ),
    ],
)
def test_what_cannot_be(change, problem):
    with pytest.raises(RecipeError) as caught:
        Changes(**change)
    assert str(caught.value) == f"the model cannot be changed so: {problem}"


def test_all_problems_at_once():
    with pytest.raises(RecipeError) as caught:
        Changes(layers=(1, 0), drop_heads=((0,),))
    assert str(caught.value).splitlines()[0] == "the model cannot be changed so:"
    assert len(str(caught.value).splitlines()) == 3
