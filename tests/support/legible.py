"""Whether all that is written in a figure can be read."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text


def assert_legible(figure: Figure) -> None:
    """Assert that no two texts of a figure overlap, and that none leaves it."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [
        (text.get_text(), text.get_window_extent(renderer).padded(-1))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and shown(text, figure)
    ]
    assert len(boxes) > 4
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} overlaps {other!r}"
    for words, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{words!r} leaves the figure"


def shown(text: Text, figure: Figure) -> bool:
    """Tick labels outside the limits of their axis exist, but are not drawn."""
    for axes in figure.findobj(lambda artist: hasattr(artist, "xaxis")):  # second axes too
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    return low <= tick.get_loc() <= high and text is tick.label1
    return True
