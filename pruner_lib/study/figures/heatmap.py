"""A table of numbers in colours: how far the choices of each two methods agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pruner_lib.study.figures.drawing import new_axes
from pruner_lib.study.figures.style import styles_of


def plot_heatmap(frame: pd.DataFrame, *, label: str = "", title: str = "", ax: Axes | None = None) -> Axes:
    """Draw the agreement of each pair of names as a coloured and printed cell of a square, from 0 to 1.

    Args:
        frame: of `questions.agreement_table`: columns `method_a`, `method_b`, `overlap`, each pair once.
        label: what is measured, beside the bar of colours; "": another panel has the bar.
    """
    names = list(dict.fromkeys([*frame.method_a, *frame.method_b]))
    table = frame.pivot(index="method_a", columns="method_b", values="overlap")
    table = table.combine_first(table.T).loc[names, names].to_numpy()
    size = 1.6 + 0.62 * len(names)
    ax = new_axes(ax, size + 1.2 * bool(label), size)
    image = ax.imshow(table, cmap="cividis", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        shown, color = f"{round(number, 2) + 0:.2f}", "black" if number > 0.55 else "white"  # + 0: no -0.00
        ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9)
    labels = [style.label for style in styles_of(names).values()]
    ax.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), labels)
    ax.set_title(title, loc="left", fontsize=11)
    if label:
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85)
    return ax
