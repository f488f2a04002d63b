"""Go on with a benchmark that was interrupted: only under the conditions it began with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tfx.errors import DataError, listing

from ..pages.output import read_report
from .machine import Machine
from .report import BenchReport
from .workload import Plan


def continued(path: Path, plan: Plan, machine: Machine) -> BenchReport:
    """The report of an interrupted run, if this one measures the same on the same machine.

    Args:
        path: What ``tfx bench --output`` wrote.
        plan: What is asked for now.
        machine: What this runs on.

    Raises:
        DataError: If the file is no report, or the conditions differ; names each.
    """
    earlier = read_report(path)
    problems = [
        f"{field.name} was {getattr(earlier.plan, field.name)!r}, is {getattr(plan, field.name)!r}"
        for field in fields(Plan)
        if getattr(earlier.plan, field.name) != getattr(plan, field.name)
    ]
    problems += [
        f"{name} was {getattr(earlier.machine, name)}, is {getattr(machine, name)}"
        for name in ("cpu", "usable_cpus", "versions")
        if getattr(earlier.machine, name) != getattr(machine, name)
    ]
    if problems:
        raise DataError(
            listing(f"{path} cannot be continued:", problems),
            hint="Give the same options, or begin anew without --resume.",
        )
    return earlier
