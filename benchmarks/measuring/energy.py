"""Energy the CPU packages took, where the machine tells it (RAPL, by Linux's powercap)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules of all CPU packages since some moment; of everything that runs on them."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Find the packages.

        Args:
            folder: Where powercap is; none, or one that may not be read, gives no numbers.
        """
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it; AMD's are called the same. A zone
        # named "psys" is the whole board, packages included.
        self._zones = [
            (zone / "energy_uj", _number(zone / "max_energy_range_uj"))
            for zone in sorted(folder.glob("intel-rapl:*"))
            if zone.name.count(":") == 1
            and _name(zone).startswith("package")
            and _number(zone / "energy_uj") is not None
        ]

    def read(self) -> list[int] | None:
        """Counters now; None where there are none."""
        found = [_number(path) for path, _ in self._zones]
        return None if not found or None in found else [one for one in found if one is not None]

    def joules(self, before: list[int] | None, after: list[int] | None) -> float | None:
        """Energy between two readings; a counter that began anew is taken to have done so once."""
        if before is None or after is None:
            return None
        total = 0
        for (_, most), first, second in zip(self._zones, before, after, strict=True):
            total += second - first if second >= first else second - first + (most or 0)
        return total / 1e6


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # absent in most virtual machines, and often root's alone
