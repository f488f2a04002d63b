"""``python -m tfx.bench.generation``: how fast a bundle with a cache writes, beside transformers.

Both take the likeliest token each time, from the same prompt of random tokens, and never stop
early. They run by turns, so that what else the machine does meets both; transformers runs the
bundle's own source in float32. Rounds are summed up by their medians.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.console import FOLDER, chosen_bundle, emit_json, json_option
from tfx.errors import FeedError, TfxError
from tfx.runtime.backend import Executable, RunOptions, find_backend, get_backend
from tfx.runtime.cpus import usable_cpus
from tfx.runtime.generation.decoder import Decoder, is_generator, longest
from tfx.runtime.generation.kv_cache import cache_specs
from tfx.runtime.pytorch.modules import load_module
from tfx.signature import Signature

from .machine import this_machine

BACKENDS = ("onnxruntime", "openvino")
TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class Writing:
    """What one way to write took; medians over the rounds.

    Attributes:
        name: Backend, or "transformers".
        first_ms: From the prompt to the first token.
        step_ms: From one token to the next; 0 where it is not seen from outside.
        late_step_ms: The same over the last quarter of the text.
        total_s: Of the whole text.
        cpu_s: Processor time of it, of all threads.
        row_tokens_per_s: New tokens of each row.
        tokens_per_s: New tokens of all rows together.
        same: Whether it chose the tokens that the first one did.
    """

    name: str
    first_ms: float
    step_ms: float
    late_step_ms: float
    total_s: float
    cpu_s: float
    row_tokens_per_s: float
    tokens_per_s: float
    same: bool


@dataclass(frozen=True, slots=True)
class _Round:
    times: np.ndarray  # seconds from the start to each token
    cpu_s: float
    ids: np.ndarray


def measure(
    bundle: Bundle,
    *,
    batch: int = 1,
    prompt: int = 128,
    new_tokens: int = 128,
    rounds: int = 3,
    threads: int | None = None,
    beside: bool = True,
) -> list[Writing]:
    """Write the same text in every way there is, by turns.

    Args:
        bundle: With a cache.
        batch: Rows written at once.
        prompt: Tokens read first.
        new_tokens: Tokens written.
        rounds: Of each way, after a short one that is not counted.
        threads: CPU threads; None for all this process may use.
        beside: Whether transformers runs too.

    Raises:
        FeedError: If the bundle has no cache, or not so many positions.
    """
    signature = bundle.manifest.signature
    if not is_generator(signature):
        raise FeedError(f"{bundle.name} has no cache to generate with")
    if prompt + new_tokens > longest(signature):
        raise FeedError(
            f"{prompt} and {new_tokens} tokens are asked for, the model takes {longest(signature)}"
        )
    (tokens,) = (spec for spec in signature.inputs if spec.name == "input_ids")
    most = tokens.values.max if tokens.values else 1
    ids = np.random.default_rng(0).integers(0, most, (batch, prompt), endpoint=True)
    options = RunOptions(threads=threads or usable_cpus())
    ways: dict[str, Any] = {
        name: get_backend(name).load(bundle, options)
        for name in BACKENDS
        if not find_backend(name).missing()
    }
    if beside:
        ways[TRANSFORMERS] = _source(bundle, options.threads)
    found: dict[str, list[_Round]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            write = _by_transformers if name == TRANSFORMERS else _by_steps
            one = write(way, signature, ids, new_tokens if turn else 2)
            if turn:
                found[name].append(one)
    for name, way in ways.items():
        if name != TRANSFORMERS:
            way.close()
    expected = next(iter(found.values()))[0].ids
    return [_summary(name, some, batch, expected) for name, some in found.items()]


def cache_bytes(signature: Signature, tokens: int) -> int:
    """What the cache of one row takes for so many tokens."""
    return sum(
        tokens * spec.dtype.itemsize * int(np.prod([s for s in spec.shape if isinstance(s, int)]))
        for spec in cache_specs(signature)
    )


def _by_steps(way: Executable, signature: Signature, ids: np.ndarray, count: int) -> _Round:
    decoder = Decoder(way, signature)
    cpu, started = time.process_time(), time.perf_counter()
    times, chosen = [], []
    logits = decoder.start(ids, np.ones_like(ids), ids.shape[1] + count)
    for step in range(count):
        chosen.append(logits.argmax(axis=1))
        times.append(time.perf_counter() - started)
        if step + 1 < count:
            logits = decoder.step(chosen[-1])
    return _Round(np.array(times), time.process_time() - cpu, np.stack(chosen, axis=1))


def _by_transformers(way: Any, signature: Signature, ids: np.ndarray, count: int) -> _Round:
    import torch

    times: list[float] = []

    class Watch:
        """Is told the prompt first, and then each row of tokens."""

        def put(self, _: Any) -> None:
            times.append(time.perf_counter() - started)

        def end(self) -> None:
            pass

    given = torch.from_numpy(ids)
    # Transformers streams a batch of one only.
    watch = Watch() if len(ids) == 1 else None
    cpu, started = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        found = way.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            streamer=watch,
        )
    taken = time.perf_counter() - started
    marks = times[1:] if watch else [taken]
    return _Round(np.array(marks), time.process_time() - cpu, found[:, ids.shape[1] :].numpy())


def _source(bundle: Bundle, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    model: Any = load_module(bundle.manifest.source.found_from(bundle.path.resolve().parent))
    whole = model.model
    whole.generation_config.eos_token_id = None
    whole.generation_config.pad_token_id = 0
    return whole


def _summary(name: str, rounds: list[_Round], batch: int, expected: np.ndarray) -> Writing:
    def median(of: Any) -> float:
        return float(np.median([of(one) for one in rounds]))

    def step(one: _Round, share: float) -> float:
        gaps = np.diff(one.times)
        return float(np.median(gaps[int(len(gaps) * share) :])) if len(gaps) else 0.0

    total = median(lambda one: one.times[-1])
    count = expected.shape[1]
    return Writing(
        name=name,
        first_ms=median(lambda one: one.times[0] if len(one.times) > 1 else 0.0) * 1e3,
        step_ms=median(lambda one: step(one, 0.0)) * 1e3,
        late_step_ms=median(lambda one: step(one, 0.75)) * 1e3,
        total_s=total,
        cpu_s=median(lambda one: one.cpu_s),
        row_tokens_per_s=count / total,
        tokens_per_s=batch * count / total,
        same=all(np.array_equal(one.ids, expected) for one in rounds),
    )


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--batch", default=1, show_default=True, help="Rows written at once.")
@click.option("--prompt", default=128, show_default=True, help="Tokens read first.")
@click.option("--new-tokens", default=128, show_default=True, help="Tokens written.")
@click.option("--rounds", default=3, show_default=True, help="Of each way, by turns.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--alone", is_flag=True, help="Without transformers.")
@json_option
def main(
    bundle: Path | None,
    batch: int,
    prompt: int,
    new_tokens: int,
    rounds: int,
    threads: int | None,
    alone: bool,
    as_json: bool,
) -> None:
    """Measure how fast BUNDLE writes text, beside transformers' generate."""
    try:
        opened = chosen_bundle(bundle)
        found = measure(
            opened,
            batch=batch,
            prompt=prompt,
            new_tokens=new_tokens,
            rounds=rounds,
            threads=threads,
            beside=not alone,
        )
    except TfxError as error:
        raise click.ClickException(str(error)) from error
    size = cache_bytes(opened.manifest.signature, 1)
    if as_json:
        ways = [asdict(one) for one in found]
        emit_json({"machine": str(this_machine()), "cache_bytes_per_token": size, "ways": ways})
        return
    click.echo(f"{opened.name}: batch {batch}, prompt {prompt}, {new_tokens} new tokens")
    click.echo("way            first ms   step ms   late ms   total s     cpu s   tokens/s  same")
    for one in found:
        click.echo(
            f"{one.name:14} {one.first_ms:8.1f} {one.step_ms:9.2f} {one.late_step_ms:9.2f} "
            f"{one.total_s:9.2f} {one.cpu_s:9.2f} {one.tokens_per_s:10.1f}  {one.same}"
        )
    click.echo(f"cache: {size * batch * (prompt + new_tokens) / 1e6:.1f} MB, {size} bytes a token")
    click.echo(str(this_machine()))


if __name__ == "__main__":
    main()
