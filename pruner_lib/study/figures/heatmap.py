"""A table of numbers in colours: how far the choices of each two methods agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pruner_lib.study.figures.drawing import finish_axes, need, new_axes
from pruner_lib.study.figures.style import styles_of


def plot_heatmap(
    frame: pd.DataFrame,
    value: str = "overlap",
    *,
    label: str,
    rows: str = "method_a",
    columns: str = "method_b",
    limits: tuple[float, float] = (0.0, 1.0),
    bar: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a number for each pair of names as a coloured and printed cell of a square.

    Args:
        frame: columns `rows`, `columns`, `value`; a row for every ordered pair, or for one order.
        label: what is measured, with its range, beside the bar of colours.
        limits: the numbers of the darkest and of the lightest colour, the same in all panels of a figure.
        bar: False: another panel has the bar.
    """
    need(frame, rows, columns, value)
    names = list(dict.fromkeys([*frame[rows], *frame[columns]]))
    table = frame.pivot(index=rows, columns=columns, values=value)
    table = table.combine_first(table.T).loc[names, names].to_numpy()
    size = 1.6 + 0.62 * len(names)
    ax = new_axes(ax, size + 1.2 * bar, size)
    low, high = limits
    image = ax.imshow(table, cmap="cividis", vmin=low, vmax=high)
    for (row, column), number in np.ndenumerate(table):
        if np.isfinite(number):
            color = "black" if number > low + 0.55 * (high - low) else "white"
            shown = f"{round(number, 2) + 0:.2f}"  # + 0: no -0.00
            ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9)
    labels = [style.label for style in styles_of(names).values()]
    ax.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), labels)
    if bar:
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85)
    return finish_axes(ax, title, [])
