"""The figures of the study: rows of intervals, curves, a heat map, the drawing of groups, and the verdicts.

One function per figure draws a tidy frame on axes, with one table of styles. Nothing is measured here.
"""

from pruner_lib.study.figures.groups import plot_groups, slices_frame
from pruner_lib.study.figures.plots import plot_curves, plot_heatmap, plot_intervals, plot_verdicts

__all__ = ["plot_curves", "plot_groups", "plot_heatmap", "plot_intervals", "plot_verdicts", "slices_frame"]
