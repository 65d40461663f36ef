"""How much memory this process holds and held at most, in MiB; no model is known here."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from pruner_lib.capacity import give_back as give_back  # looked for here


def reset_peak() -> None:
    """Let the peak count from now on; where the system can't do that, it goes on from the process's start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux
    except OSError:
        return


def peak_mb() -> float:
    """Give the highest resident memory in MiB: since `reset_peak` on Linux, of the process elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def resident_mb() -> float:
    """Give the memory that the process holds now, in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20
