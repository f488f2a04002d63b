"""Every family that writes, step by step through its cache, beside transformers' own steps."""

import pytest
import torch
from click.testing import CliRunner

from tfx.export import writing
from tfx.export.families import build
from tfx.export.writers import CAUSAL, PAIRS
from tfx.export.writing import WEIGHT_STD, Written, compare_texts, table
from tfx.recipe import GENERATING_PARTS
from tfx.runtime.pytorch.generators import cache_sizes, generator_of, no_cache
from tfx.runtime.pytorch.pairs import no_pair_cache, pair_part_of, pair_sizes

# Without a cache, and why.
ONE_PASS = {
    "FSMT": "masks a target only where it reads the input",
    "NLLB-MoE": "too much for an expert in all texts of a batch",
    "ProphetNet": "by other code than one more token",
    "Switch": "leaves out what is too much for an expert",
}
CAPACITY = 32


def label(family):
    return family.name.replace(" ", "-").replace(",", "")


def random_model(family):
    model = build(family)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=WEIGHT_STD)
    return model


def empty_cache(sizes, rows):
    """Places that hold noise: what is not written is never looked at."""
    cache = {}
    for layer, (heads, key, value) in enumerate(sizes):
        cache[f"past_key_{layer}"] = torch.randn(rows, heads, CAPACITY, key)
        cache[f"past_value_{layer}"] = torch.randn(rows, heads, CAPACITY, value)
    return cache


def past_of(outputs):
    return {name.replace("present", "past"): one for name, one in outputs.items()}


@pytest.mark.parametrize("family", CAUSAL, ids=label)
@torch.no_grad()
def test_likeliest_tokens_are_those_of_transformers(family):
    model = random_model(family)
    assert no_cache(model.config, family.class_name) == ""
    prompt = torch.tensor([[7, 9, 11, 30, 22, 5, 6]])
    width = prompt.shape[1]
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False
    )[0, width:].tolist()
    whole = torch.cat([prompt, torch.tensor([expected[:-1]], dtype=torch.long)], 1)
    logits = model(input_ids=whole, use_cache=False).logits[0, width - 1 :]
    past = empty_cache(cache_sizes(model), 1)
    generator = generator_of(model)
    ids, places, found, steps = prompt, torch.arange(width), [], []
    while len(found) < len(expected):
        mask = (torch.arange(CAPACITY) <= places[-1]).long()[None]
        outputs = generator(
            input_ids=ids,
            attention_mask=mask,
            cache_position=places,
            logits_to_keep=torch.tensor([ids.shape[1] - 1]),
            **past,
        )
        steps.append(outputs.pop("logits")[0, -1])
        found.append(int(steps[-1].argmax()))
        past = past_of(outputs)
        ids, places = torch.tensor([found[-1:]]), places[-1:] + 1
    assert found == expected
    # Gemma writes one token again and again here: its logits tell more.
    scale = float(logits.abs().max())
    torch.testing.assert_close(torch.stack(steps), logits, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("family", [one for one in PAIRS if one.name not in ONE_PASS], ids=label)
@torch.no_grad()
def test_a_decoder_of_places_gives_the_logits_of_a_whole_target(family):
    model = random_model(family)
    encoder, decoder = (pair_part_of(model, part) for part in GENERATING_PARTS)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:], mask[2, :3] = 0, 0
    source = {"input_ids": torch.randint(4, 60, (3, 9)), "attention_mask": mask}
    target = torch.randint(4, 60, (3, 7))
    expected = model(**source, decoder_input_ids=target, use_cache=False).logits
    given = encoder(**source)
    del given["last_hidden_state"]
    past, found = empty_cache(pair_sizes(model), 3), []
    for first, last in ((0, 4), (4, 5), (5, 6), (6, 7)):
        outputs = decoder(
            input_ids=target[:, first:last],
            cache_position=torch.arange(first, last),
            logits_to_keep=torch.arange(last - first),
            encoder_attention_mask=mask,
            **given,
            **past,
        )
        found.append(outputs.pop("logits"))
        past = past_of(outputs)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-5 * scale)
    assert no_pair_cache(model.config, family.class_name) == ""


@pytest.mark.parametrize("family", [one for one in PAIRS if one.name in ONE_PASS], ids=label)
def test_what_has_no_cache_says_why(family):
    assert ONE_PASS[family.name] in no_pair_cache(build(family).config, family.class_name)


@pytest.mark.every
@pytest.mark.parametrize("family", [*CAUSAL, *PAIRS], ids=label)
def test_texts_are_those_of_transformers(family):
    found = compare_texts(family)
    assert found.is_same or (found.problem and family.name in ONE_PASS), found


def test_the_command_prints_what_came_of_each(monkeypatch):
    asked = []

    def compare(family, *, cache):
        asked.append((family.name, cache))
        if family.name == "LED":
            return Written(family, "LEDModel | is odd")
        return Written(family, greedy=6, beams=5 if family.name == "MPT" else 6, prompts=6)

    monkeypatch.setattr(writing, "compare_texts", compare)
    done = CliRunner().invoke(writing.main, ["granite", "LED", "--require-cache"])
    assert done.exit_code == 0, done.output
    assert asked == [("Granite", True), ("LED", True)]
    assert done.stdout.splitlines()[2:] == [
        "| Granite | `GraniteForCausalLM` | 6 of 6 | 6 of 6 |",
        r"| LED | `LEDForConditionalGeneration` | LEDModel \| is odd |  |",
    ]
    done = CliRunner().invoke(writing.main, ["MPT"])
    assert done.exit_code == 1
    assert "Error: tokens differ from transformers'" in done.stderr
    assert asked[-1] == ("MPT", None)
    assert table([]).startswith("| family | class |")
