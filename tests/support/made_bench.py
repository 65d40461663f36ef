"""Rows as a whole run of the benchmark gives them, made up."""

from __future__ import annotations

import pandas as pd


def made_up() -> dict[str, pd.DataFrame]:
    """Rows of the sizes and the looks that a whole run gives."""
    sizes = {"0.1": 0.134, "0.5": 0.55, "1": 1.14, "3": 3.43, "7": 6.74}
    ways = {"plain": (2.6, 1.0), "vector": (1.3, 1.1), "element1": (1.3, 1.2), "all criteria": (1.4, 2.6)}
    scoring = [
        {"way": way, "size": size, "parameters": n * 1e9, "weights_mb": 1907 * n, "checkpointing": again}
        | {"peak_mb": 400 + (memory - less) * 1907 * n, "time_to_plain": seconds}
        for size, n in sizes.items()
        for way, (memory, seconds) in ways.items()
        for again, less in (("", 0), ("yes", 0.3))
    ]
    discovery = [
        {"tool": tool, "size": size, "layers": layers, "width": width, "seconds": slow * layers * width / 4e4}
        | {"parameters": 65_000 * width + 12 * layers * width**2}
        for tool, slow in (("ours", 0.5), ("torch-pruning", 3))
        for layers, width, size in [(4, 1024, "4x1024"), (8, 1024, "8x1024"), (64, 1024, "64x1024"),
        (8, 512, "8x512"), (8, 8192, "8x8192"), (32, 4096, "7"), (80, 8192, "70")]
    ]  # fmt: skip
    latency = [
        {"phase": phase, "removed": share, "multiple_of": multiple, "ideal": 1 / (1 - share)}
        | {"speedup": 1 + share * 1.4, "speedup_q1": 1 + share * 1.3, "speedup_q3": 1 + share * 1.5}
        for phase in ("prefill", "decoding")
        for share in (0.0, 0.2, 0.5)
        for multiple in ((1,) if share == 0 else (1, 8, 64))
    ]
    evaluation = [
        {"window": window, "dtype": dtype, "share": 0.96, "share_q1": 0.95, "share_q3": 0.98}
        for dtype in ("float32", "bfloat16")
        for window in (128, 1024)
    ]
    rows = {"scoring": scoring, "discovery": discovery, "latency": latency, "evaluation": evaluation}
    return {name: pd.DataFrame(found) for name, found in rows.items()}
