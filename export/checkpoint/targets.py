"""What a checkpoint says about the texts of its decoder: ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.errors import SourceError
from tfx.processing import Target

from .generation import SETTINGS_FILE, read_settings, token_ids
from .languages import Languages, read_languages

# What a checkpoint may ask for and nothing here does, and what asks for nothing.
UNDONE: Mapping[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "min_new_tokens": (None, 0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "watermarking_config": (None,),
}
# What only matters to tokens that are drawn, which a caller asks for with all that belongs to it.
DRAWN = "do_sample"
STOPPING: Mapping[Any, str] = {None: "no", False: "no", True: "yes", "never": "never"}


def read_target(config: Any, folder: Path | None) -> tuple[Target, tuple[str, ...]]:
    """Read how a decoder's texts begin and go on.

    Args:
        config: The model's configuration.
        folder: The checkpoint; None where there is none.

    Returns:
        The target, and a sentence for each thing that is asked for and not done.

    Raises:
        SourceError: If a file is damaged, or nothing says which token a text begins with.
    """
    said, notes = read_settings(config, folder), []
    ends = token_ids(said.eos_token_id)
    bad = [ids for ids in said.bad_words_ids or [] if ids not in ([end] for end in ends)]
    for name, idle in UNDONE.items():
        if (value := getattr(said, name, None)) not in idle:
            notes.append(f"the checkpoint asks for {name} {value}, which is not done")
    if long := [ids for ids in bad if len(ids) > 1]:
        notes.append(
            f"the checkpoint forbids {len(long)} words of several tokens, which is not done"
        )
    if getattr(said, DRAWN, None):
        notes.append("the checkpoint draws tokens (do_sample); here a temperature asks for it")
    start = said.decoder_start_token_id
    start = said.bos_token_id if start is None else start
    if not isinstance(start, int):
        raise SourceError(
            f"decoder_start_token_id is {start}, expected the token a text begins with",
            hint=f"Name it in {SETTINGS_FILE}, or export for one pass: --no-cache.",
        )
    last = token_ids(said.forced_eos_token_id)
    if len(last) > 1:
        notes.append(f"of forced_eos_token_id {list(last)} the first alone is forced")
    # Whisper's are its dictation's.
    spoken = Languages()
    if folder is not None and not getattr(said, "lang_to_id", None):
        spoken = read_languages(folder)
    target = Target(
        start=start,
        first=-1 if said.forced_bos_token_id is None else said.forced_bos_token_id,
        last=last[0] if last else -1,
        shortest=said.min_length or 0,
        longest=said.max_length or 0,
        suppressed=(*(ids[0] for ids in bad if len(ids) == 1), *(said.suppress_tokens or ())),
        suppressed_first=tuple(said.begin_suppress_tokens or ()),
        ngram=said.no_repeat_ngram_size or 0,
        repetition_penalty=float(said.repetition_penalty or 1),
        num_beams=said.num_beams or 1,
        length_penalty=float(1 if said.length_penalty is None else said.length_penalty),
        early_stopping=STOPPING[said.early_stopping],
        renormalize=bool(said.renormalize_logits),
        prefixes=_prefixes(config),
        languages=spoken.targets,
        sources=spoken.sources,
        source_place=spoken.source_place,
        leads_input=spoken.leads_input,
    )
    return target, tuple(notes)


def _prefixes(config: Any) -> dict[str, str]:
    """T5's tasks; other models with such parameters have no prefix in them."""
    tasks = getattr(config, "task_specific_params", None) or {}
    return {
        name: prefix
        for name, said in tasks.items()
        if isinstance(said, dict) and isinstance(prefix := said.get("prefix"), str)
    }
