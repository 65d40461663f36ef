"""The order in which experiments run, so that what they share is made once. Nothing runs here."""

from __future__ import annotations

from pruner_lib.study.settings import DATA_FREE, OWN_PASS, Experiment

Jobs = list[tuple[Experiment, tuple[str, ...]]]  # experiments, each with the criteria to score beside its own


def in_order(experiments: list[Experiment]) -> Jobs:
    """Put experiments of one model side by side, those without recovery first, then by calibration.

    Returns: the experiments, each with all criteria that are needed of the calibration pass that it makes.
    """
    models = list(dict.fromkeys(one.model for one in experiments))
    ordered = sorted(
        experiments,
        key=lambda one: (
            models.index(one.model),
            one.recovery is not None,
            one.ratio > 0,
            repr(one.calibration),
        ),
    )
    return [(one, _criteria_of(one, experiments)) for one in ordered]


def _criteria_of(experiment: Experiment, experiments: list[Experiment]) -> tuple[str, ...]:
    """List the criteria that experiments need of the same calibration pass as this one."""
    if experiment.canonical().calibration != experiment.calibration or not experiment.ratio:
        return ()
    place = experiment.model, experiment.calibration
    same = [one for one in experiments if one.ratio and (one.model, one.calibration) == place]
    return tuple(sorted({one.criterion for one in same} - {*DATA_FREE, *OWN_PASS}))
