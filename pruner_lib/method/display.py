"""Axes and plans as text and HTML, at most a screenful: what is coupled and what is kept.

Axes of the same form in different layers share a line.
"""

import re
from collections.abc import Iterable

LINES = 10  # shown of each list; the others are only counted


def axis_text(axis) -> str:
    """Show an `Axis`, one line per member."""
    head = f"{axis.name}: {_size(axis)}, {axis.group_parameters:,} parameters each. A group holds"
    return "\n".join([head, *_first(f"  {member}" for member in axis.members)])


def axes_text(axes) -> str:
    """Show `Axes`: what goes together, one line per form of axis, and what stays whole."""
    alike: dict[tuple, list[int]] = {}  # name without numbers, size, members -> layers
    for a in axes.values():
        parts = (f"{_pattern(m.structure).split('.')[-1]} {m.width}" for m in a.members)
        form = _pattern(a.name), _size(a), tuple(dict.fromkeys(parts))
        alike.setdefault(form, []).append(a.layer or 0)
    lines = []
    for (name, size, parts), layers in alike.items():
        scope = f"{len(layers)} axes, layers {_span(layers)}: " if len(layers) > 1 else ""
        lines.append(f"  {name}: {scope}{size}, each {', '.join(_first(parts))}")
    notes = axes.notes or ["nothing that could be a group"]
    head = f"{axes.n_layers} decoder layers, {axes.n_parameters:,} parameters. What goes together:"
    return "\n".join([head, *_first(lines), "What stays whole:", *_first(f"  {note}" for note in notes)])


def axes_html(axes) -> str:
    """Show `Axes`: a table with one row per axis, and a list of what stays whole."""
    rows = []
    for a in axes.values():
        structures = ", ".join(_first(s.rsplit(".", 1)[-1] for s in a.structures))
        share = f"{a.n_groups * a.group_parameters / axes.n_parameters:.2%}"
        rows.append((a.name, a.kind, a.n_groups, a.width, structures, share))
    notes = "".join(f"<li>{note}</li>" for note in axes.notes)
    head = ("axis", "kind", "groups", "channels per group", "structures", "share")
    return f"{_table(head, rows)}<ul>{notes}</ul>"


def plan_text(plan) -> str:
    """Show a `Plan`: its settings, and how many groups it keeps, one line for all layers."""
    alike: dict[str, list[str]] = {}
    for name in plan.keep:
        alike.setdefault(_pattern(name), []).append(name)
    lines, losing = [], plan.cut
    for pattern, names in alike.items():
        cut = [name for name in names if name in losing]
        kept = f"{_span(len(plan.keep[name]) for name in cut)} of" if cut else "all"
        groups = _span(plan.n_groups[name] for name in cut or names)
        number = f"{len(cut)} of {len(names)}" if cut else f"all {len(names)}"
        lines.append(f"  {pattern}: keeps {kept} {groups} groups in {number} axes")
    return "\n".join([f"Plan ({_settings(plan)[:400]})", *_first(lines)])


def plan_html(plan) -> str:
    """Show a `Plan`: its settings, and a table with one row per axis."""
    counts = [(name, plan.n_groups[name], len(kept)) for name, kept in plan.keep.items()]
    rows = [(name, n, kept, f"{1 - kept / n:.1%}") for name, n, kept in counts]
    return f"<p>{_settings(plan)}</p>{_table(('axis', 'groups', 'kept', 'removed'), rows)}"


def _size(axis) -> str:
    return f"{axis.n_groups} groups of {axis.width} channel{'s' * (axis.width > 1)}"


def _settings(plan) -> str:
    return ", ".join(f"{key} = {value}" for key, value in plan.settings.items())


def _first(lines: Iterable[str]) -> list[str]:
    """Return the first `LINES` lines, and how many more there are."""
    lines = list(lines)
    return lines[:LINES] + [f"... and {len(lines) - LINES} more"] * (len(lines) > LINES)


def _pattern(name: str) -> str:
    """Replace the numbers in a name by stars, so that corresponding modules of all layers share it."""
    return re.sub(r"(?<=\.)\d+(?=[./]|$)", "*", name)


def _span(numbers: Iterable[int]) -> str:
    numbers = sorted(set(numbers))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _table(head: Iterable[str], rows: Iterable[tuple]) -> str:
    cells = ["".join(f"<th>{h}</th>" for h in head)]
    cells += ["".join(f"<td>{value}</td>" for value in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
