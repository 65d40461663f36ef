"""The study: settings, runs, records, what the notebooks compare, the paper's claims, figures, report.

The names below are imported when they are first used, because figures and reports need no model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruner_lib.study.profiles import load_profile
    from pruner_lib.study.run import Study
    from pruner_lib.study.settings import Calibration, Evaluation, Experiment, Recovery

__all__ = ["Calibration", "Evaluation", "Experiment", "Recovery", "Study", "load_profile"]
_HOME = {"Study": "run", "load_profile": "profiles"}  # the other names are in `settings`


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pruner_lib.study' has no attribute {name!r}")
    return getattr(import_module(f"pruner_lib.study.{_HOME.get(name, 'settings')}"), name)
