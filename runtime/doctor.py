"""What this machine can run, and how to get what is missing: the answers of ``tfx doctor``."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from tfx import __version__
from tfx.extras import DISTRIBUTION, EXTRAS, version_of

from .backend import BACKENDS, find_backend
from .cache import LIMIT_VARIABLE, cache_folder, limit_mb
from .cpus import read_cpu, usable_cpus

if TYPE_CHECKING:
    from rich.console import Console

# Distributions whose versions decide what happens, ours and those of the extras.
DISTRIBUTIONS = (
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "optimum",
    "sentence-transformers",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12-bindings",
    "cuda-bindings",
)

# Distribution of a backend's library, where it is not called like the backend.
LIBRARY = {
    "torch-compiled": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-tensorrt": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt", "tensorrt-rtx-cu12-bindings"),
}


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """Whether one backend can run here.

    Attributes:
        name: Key in ``BACKENDS``.
        version: Of its library; "" where none is installed.
        missing: Why it cannot run, with what to do about it; "" when it can.
    """

    name: str
    version: str
    missing: str

    @property
    def works(self) -> bool:
        """Whether it can run."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything ``tfx doctor`` says.

    Attributes:
        version: Of tfx.
        python: Version of the interpreter.
        prefix: Root of its environment.
        system: Kernel and machine type.
        cpu: Model name; "" where the system does not say.
        usable_cpus: What affinity and the container's quota leave.
        memory_mb: Physical memory, in units of 10^6 bytes.
        gpus: One line each, from nvidia-smi: name, driver, memory.
        gpu_problem: Why there are none; "" when there are.
        cache: The folder of compiled models, what it holds and may hold.
        backends: In the order of ``BACKENDS``.
        extras: Extra to its import names that are not installed.
        versions: Distribution to version; only what is installed.
        problems: What is wrong with the installation, each with what to do about it.
    """

    version: str
    python: str
    prefix: str
    system: str
    cpu: str
    usable_cpus: int
    memory_mb: int
    gpus: tuple[str, ...]
    gpu_problem: str
    cache: str
    backends: tuple[BackendHealth, ...]
    extras: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, str]
    problems: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether any backend can run and the installation is sound."""
        return any(backend.works for backend in self.backends) and not self.problems


def diagnose() -> Diagnosis:
    """Look at this machine and environment; imports the library of every backend."""
    gpus, gpu_problem = nvidia_gpus()
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        prefix=sys.prefix,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=read_cpu().model,
        usable_cpus=usable_cpus(),
        memory_mb=psutil.virtual_memory().total // 10**6,
        gpus=gpus,
        gpu_problem=gpu_problem,
        cache=cache_state(),
        backends=tuple(_health(name) for name in BACKENDS),
        extras=missing_of_extras(),
        versions={name: version for name in DISTRIBUTIONS if (version := version_of(name))},
        problems=tuple(installation_problems()),
    )


def nvidia_gpus(command: str = "nvidia-smi") -> tuple[tuple[str, ...], str]:
    """Ask the NVIDIA driver for its GPUs.

    Args:
        command: The driver's own tool, on the path.

    Returns:
        One line per GPU, and "" or why there is none.
    """
    if (tool := shutil.which(command)) is None:
        return (), f"{command} is not on the path: no NVIDIA driver is installed"
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"{command} does not answer: {error}"
    lines = tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
    if done.returncode != 0 or not lines:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        return (), f"{command} finds none: {said}"
    return lines, ""


def cache_state() -> str:
    """Where compiled models are kept, how much is there, and how much may be.

    Raises:
        BackendError: If the limit in the environment is no number.
    """
    folder = cache_folder()
    if not (limit := limit_mb()):
        return f"off: {LIMIT_VARIABLE}=0"
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    return f"{folder}, {size_mb:.0f} of {limit} MB"


def missing_of_extras() -> dict[str, tuple[str, ...]]:
    """Each extra's import names that are not installed; looked for, not imported."""
    missing: dict[str, list[str]] = {extra: [] for extra in EXTRAS.values()}
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            missing[extra].append(module)
    return {extra: tuple(modules) for extra, modules in missing.items()}


def installation_problems() -> list[str]:
    """What makes an installation misbehave although every part of it imports."""
    problems = []
    if version := version_of("tfx"):
        problems.append(
            f"TensorFlow Extended (tfx {version}) is installed here too and has the same import "
            f"name and command; install {DISTRIBUTION} into an environment of its own"
        )
    installed = version_of(DISTRIBUTION)
    if installed is not None and installed != __version__:
        problems.append(
            f"{DISTRIBUTION} {installed} is installed and {__version__} runs: another copy of "
            "tfx comes first on the path; start Python elsewhere or install again"
        )
    if version_of("onnxruntime") and version_of("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one"
        )
    return problems


def show_diagnosis(out: Console, found: Diagnosis) -> None:
    """Print a diagnosis as tables."""
    # rich takes [cpu] in a text for a style and drops it, unless escaped.
    from rich.markup import escape
    from rich.table import Table

    out.print(f"tfx {found.version}, Python {found.python} in {found.prefix}", markup=False)
    for problem in found.problems:
        out.print(f"problem: {problem}", style="bold red", markup=False)

    backends = Table("backend", "version", "works", "why not", title="Backends")
    for backend in found.backends:
        state = "yes" if backend.works else "no"
        backends.add_row(backend.name, backend.version or "-", state, escape(backend.missing))
    devices = Table("device", "what", title="Devices", show_header=False)
    memory = f"{found.memory_mb / 1000:.1f} GB"
    devices.add_row("CPU", f"{found.cpu or 'unknown'}, {found.usable_cpus} usable, {memory}")
    for gpu in found.gpus or (f"none ({found.gpu_problem})",):
        devices.add_row("GPU", escape(gpu))
    devices.add_row("system", found.system)
    devices.add_row("cache", escape(found.cache))
    extras = Table("extra", "not installed", "how to get it", title="Extras")
    for extra, missing in found.extras.items():
        hint = f"pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        extras.add_row(extra, ", ".join(missing) or "-", escape(hint))
    versions = Table("library", "version", title="Versions")
    for name, version in found.versions.items():
        versions.add_row(name, version)
    for table in (backends, devices, extras, versions):
        table.columns[0].no_wrap = True
        for column in table.columns:
            column.overflow = "fold"  # a name that is cut cannot be looked up
        out.print(table)


def _health(name: str) -> BackendHealth:
    libraries = LIBRARY.get(name, (name,))
    versions = [version for library in libraries if (version := version_of(library))]
    return BackendHealth(name, ", ".join(versions), find_backend(name).missing())
