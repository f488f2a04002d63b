"""The wide net: every model type transformers can build tiny, exported in a process of its own."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import resource
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfx.chatter import quiet
from tfx.errors import ExportError, TfxError
from tfx.extras import need
from tfx.recipe import PARTS, ExportRecipe
from tfx.runtime.pytorch.modules import without_cache
from tfx.runtime.pytorch.names import named_outputs
from tfx.runtime.pytorch.parts import part_of, whole_of

from .checkpoint.loader import is_encoder_decoder
from .pipeline import export_bundles
from .tiny_configs import build_tiny, tiny_config
from .tracing.architectures import plan_inputs

# Task, as optimum spells it -> transformers' table from model type to class.
TASKS: Mapping[str, str] = {
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "feature-extraction": "MODEL_MAPPING_NAMES",
    "text-generation": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "text2text-generation": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}

OK, NOT_RUN = "ok", "not run"
NOT_BUILT, NO_PLAN, NO_FORWARD = "cannot be built", "no plan", "forward fails"
NOT_LOADED, NOT_TRACED, NOT_GRAPH, DIFFERS = "load fails", "trace fails", "graph fails", "differs"

# From these on PyTorch's own forward has run.
RUNS = (OK, NOT_LOADED, NOT_TRACED, NOT_GRAPH, DIFFERS)

# Step of an export (a child's last words) -> what it means to end there.
STATUS_OF_STEP = {
    "building": NOT_BUILT,
    "planning": NO_PLAN,
    "running PyTorch": NO_FORWARD,
    "loading the model": NOT_LOADED,
    "tracing": NOT_TRACED,
    "comparing with PyTorch": DIFFERS,
}

PATH = re.compile(r"(?<!\w)/[\w./+-]+/")

REASON_WIDTH = 160
TIME_LIMIT_S = 240
MEMORY_LIMIT_BYTES = 6 << 30
PRELOADED = ["tfx.export.wide", "onnxscript", "onnxruntime", "transformers.exporters.exporter_onnx"]


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one model type with one head.

    Attributes:
        task: A key of ``TASKS``.
        model_type: As ``config.json`` spells it.
        class_name: The transformers class.
        status: ``OK``, or where it ended; ``NOT_RUN`` before.
        attention: Attention nodes of all its graphs.
        softmax: Softmaxes that stayed.
        error: Largest scaled error against PyTorch.
        reason: Why it ended there, in one line.
    """

    task: str
    model_type: str
    class_name: str
    status: str = NOT_RUN
    attention: int = 0
    softmax: int = 0
    error: float = 0.0
    reason: str = ""


def candidates(tasks: Iterable[str] = TASKS, names: Iterable[str] = ()) -> list[Row]:
    """A row, not run yet, for every model type of every task.

    Args:
        tasks: Keys of ``TASKS``.
        names: Model types to keep; empty for all.
    """
    auto = need("transformers.models.auto.modeling_auto")
    kept = set(names)
    rows = []
    for task in tasks:
        for model_type, classes in getattr(auto, TASKS[task]).items():
            name = classes[0] if isinstance(classes, tuple) else classes
            if not kept or model_type in kept:
                rows.append(Row(task, model_type, name))
    return rows


def cast(
    rows: Iterable[Row], jobs: int = 1, on_row: Callable[[Row], None] = lambda _: None
) -> list[Row]:
    """Export every row's model, each in a child process that may crash or hang.

    Args:
        rows: From ``candidates``.
        jobs: Processes at a time.
        on_row: Called with each row as it is done.

    Returns:
        The rows with what came of them, in the order given.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with concurrent.futures.ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(_guarded, context, row) for row in rows]
        for future in concurrent.futures.as_completed(futures):
            on_row(future.result())
    return [future.result() for future in futures]


def attempt(row: Row, folder: Path, on_step: Callable[[str], None] = lambda _: None) -> Row:
    """Build, run and export one model, in this process.

    Args:
        row: Which.
        folder: An empty one, for the checkpoint and its bundles.
        on_step: Called with each step as it begins.

    Returns:
        The row with what came of it; anything that goes wrong is a status.
    """
    step = ""

    def begin(name: str) -> None:
        nonlocal step
        step = name.rpartition(": ")[2]  # without "encoder: "
        on_step(step)

    begin("building")
    try:
        with quiet():
            module = _build(row)
            for part in _parts(module):
                begin("planning")
                piece = part_of(module, part) if part else whole_of(module)
                plan = plan_inputs(piece, module.config, part)
                begin("running PyTorch")
                _run(piece, plan.examples)
            begin("loading the model")
            module.save_pretrained(folder / "source")
        bundles = export_bundles(
            str(folder / "source"), folder / "bundle", ExportRecipe(), on_step=begin
        )
    # Of transformers, torch, onnx: whatever it is, it is a row.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return dataclasses.replace(row, status=_status(step), reason=_reason(error))
    manifests = [bundle.manifest for bundle in bundles]
    return dataclasses.replace(
        row,
        status=OK,
        attention=sum(one.facts["attention"] for one in manifests),
        softmax=sum(one.facts["softmax"] for one in manifests),
        error=max(check.error for one in manifests for check in (one.parity or _none()).checks),
    )


def wide_table(rows: Iterable[Row]) -> str:
    """Counts per task, then every row, as Markdown."""
    by_task: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    lines = [
        "| task | types | tried | forward runs | exported and equal | share | no plan or forward |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_count(task, of_task) for task, of_task in by_task.items()]
    lines.append(_count("**all**", [row for of_task in by_task.values() for row in of_task]))
    for task, of_task in by_task.items():
        lines += [
            f"\n## {task}\n",
            "| type | class | status | Attention fused | largest error | reason |",
            "|---|---|---|---|---|---|",
        ]
        for row in of_task:
            if row.status == NOT_RUN:
                continue
            ok = row.status == OK
            total = row.attention + row.softmax
            fused = f"{row.attention} of {total}" if ok else ""
            error = f"{row.error:.1e}" if ok else ""
            # No line of torch's report, and no path of this machine.
            said = PATH.sub("", row.reason)
            reason = textwrap.shorten(said, REASON_WIDTH, placeholder=" ...").replace("|", "\\|")
            lines.append(
                f"| {row.model_type} | `{row.class_name}` | {row.status} | {fused} | {error} "
                f"| {reason} |"
            )
    return "\n".join(lines)


def read_rows(path: Path) -> list[Row]:
    """Rows of earlier runs, one JSON object a line; of several for one model the last."""
    if not path.exists():
        return []
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = Row(**json.loads(line))
        rows[row.task, row.model_type] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Add one row to a file that ``read_rows`` reads."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def _count(task: str, rows: list[Row]) -> str:
    runs = sum(row.status in RUNS for row in rows)
    exported = sum(row.status == OK for row in rows)
    idle = sum(row.status in (NO_PLAN, NO_FORWARD) for row in rows)
    tried = sum(row.status != NOT_RUN for row in rows)
    share = f"{exported / runs:.0%}" if runs else ""
    return f"| {task} | {len(rows)} | {tried} | {runs} | {exported} | {share} | {idle} |"


def _build(row: Row) -> Any:
    transformers = need("transformers")
    configs = need("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    model_class = getattr(transformers, row.class_name)
    config_class = configs[row.model_type]
    # A head for text of a model for more than text takes the configuration of its text part.
    inner = getattr(model_class, "config_class", None)
    if inner is not None and not issubclass(config_class, inner):
        config_class = inner
    config = tiny_config(config_class)
    without_cache(config)
    return build_tiny(model_class, config)


def _parts(module: Any) -> tuple[str, ...]:
    return PARTS if is_encoder_decoder(module.config, type(module).__name__) else ("",)


def _run(module: Any, examples: Mapping[str, Any]) -> None:
    torch = need("torch")
    with torch.no_grad():
        outputs = named_outputs(module(**examples))
    wild = [
        name for name, value in outputs.items() if value.is_floating_point() and value.isnan().any()
    ]
    if wild:
        raise ExportError(
            f"not a number in {', '.join(wild)}",
            hint="Check the model's weights: random ones of its configuration overflow.",
        )


def _status(step: str) -> str:
    return STATUS_OF_STEP.get(step, NOT_GRAPH)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])
    kind = "" if isinstance(error, TfxError) else f"{type(error).__name__}: "
    return f"{kind}{text}"[:300]


def _none() -> Any:
    raise ExportError("a bundle without a proof", hint="Report it: an export always writes one.")


def _guarded(context: Any, row: Row) -> Row:
    """``attempt`` in a child process."""
    receive, send = context.Pipe(duplex=False)
    step = "building"
    with tempfile.TemporaryDirectory() as folder, receive:
        child = context.Process(target=_child, args=(row, folder, send), daemon=True)
        child.start()
        send.close()
        try:
            while receive.poll(TIME_LIMIT_S):
                said = receive.recv()
                if isinstance(said, Row):
                    return said
                step = said
            end = f"nothing for {TIME_LIMIT_S} s"
        except EOFError:
            child.join()
            end = f"the process ended with {child.exitcode}"
        finally:
            child.kill()
            child.join()
    return dataclasses.replace(row, status=_status(step), reason=f"{end} in the step: {step}")


def _child(row: Row, folder: str, send: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    with Path(os.devnull).open("w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    need("torch").set_num_threads(1)
    with contextlib.suppress(BrokenPipeError):
        send.send(attempt(row, Path(folder), send.send))
