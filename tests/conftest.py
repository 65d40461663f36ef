"""What every test runs under: no Hugging Face hub, no windows, few threads, signals as in a terminal.

Set before torch is imported.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models: more threads only wait for each other
    "MKL_NUM_THREADS": "1",
}

sys.modules.setdefault("rfc3987_syntax", None)  # of jsonschema for addresses: seconds of imports for nothing

# A job in the background of a script is started with SIGINT ignored, and so would be what a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--write-tables", action="store_true", help="write results/architectures/ anew")


def pytest_collection_modifyitems(items):
    """Files that run notebooks first, then by their share of slow tests: no core is left with a long one."""
    marks = {}
    for item in items:
        marks.setdefault(item.path, []).append({mark.name for mark in item.iter_markers()})
    notebooks = {path for path, each in marks.items() if any("notebook" in names for names in each)}
    quick = {path: sum("slow" not in names for names in each) / len(each) for path, each in marks.items()}
    items.sort(key=lambda item: (item.path not in notebooks, quick[item.path]))


def pytest_collection_finish():
    """Leave what the imports made out of all garbage collections, which would walk it each time."""
    gc.collect()
    gc.freeze()
