"""The counts of Table 3 as notebook 10 keeps them: of LLaMA-7B without weights, whatever the profile's model.

`test_known_counts` makes each of them anew; so the notebooks, which would take half a minute in every
profile, find them there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from notebook_functions import functions_of

from pruner_lib.study.records import read_kept
from pruner_lib.study.settings import settings_key

NOTEBOOK = functions_of("10_efficiency")
NAME = f"measured/{settings_key(['cuts', NOTEBOOK.CUTS, 32])}.json"
KEPT = Path(__file__).resolve().parents[2] / "results" / "quick" / NAME
ROWS = {row.pop("row"): row for row in read_kept(KEPT)}


def put_counts(place: Path) -> None:
    """Put the counts into the folder of a profile's results."""
    (place / NAME).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(KEPT, place / NAME)
