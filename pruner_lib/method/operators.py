"""What each operator does to labels: one rule per kind of operator, none for an architecture.

Operators that move data are executed on the labels, operators on two labelled tensors record dependencies
(see `labels`), and reductions drop labels. The operands of an operator without a rule are pinned: they can't
be cut, and the notes of discovery name the operator.
"""

from dataclasses import replace

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from pruner_lib.method.labels import Labels, Recording, combine, labels_of, multiply, same_along, set_labels

aten = torch.ops.aten
NO_RULE = "no dependency rule for"


def _operators(names: str) -> set:
    return {getattr(aten, name) for name in names.split()}


PRODUCTS = _operators("mm bmm addmm baddbmm")
NORMS = _operators("native_layer_norm _fused_rms_norm")
SOFTMAXES = _operators("_softmax _safe_softmax _log_softmax cumsum cumprod")  # along a dim; keep the shape
MEANS = _operators("mean var var_mean")  # change if zeros are left out
EXTREMES = _operators("amax amin max min prod logsumexp")  # a zero may be, or change, the result
REDUCTIONS = MEANS | EXTREMES | _operators("sum linalg_vector_norm count_nonzero")
SELECTIONS = _operators("topk sort argmax argmin any all")  # return an index, not a value
LOOKUPS = _operators("index index_select gather")
MOVES = _operators("_unsafe_view repeat flip roll constant_pad_nd split_with_sizes")
COPIES = _operators("_to_copy clone lift_fresh contiguous native_dropout triu tril copy")
LIKE = _operators("empty_like zeros_like ones_like full_like")
FACTORIES = _operators("new_empty new_zeros new_ones new_full new_empty_strided")
# compute with entries instead of moving or copying them, as element-wise operators do
COMPUTED = PRODUCTS | NORMS | SOFTMAXES | REDUCTIONS | SELECTIONS | LIKE | _operators("roll flip")
FILLS = _operators("arange linspace full full_like new_full fill fill_")


def labels_for(rec: Recording, func, args: tuple, kwargs: dict, out) -> list[Labels | None]:
    """Return the labels of an operator call's outputs, in the order of its output tensors."""
    op = func.overloadpacket
    labels = labels_of(args[0]) if args else None
    first = out[0] if isinstance(out, (tuple, list)) else out
    if op in PRODUCTS:
        return [_product(rec, op, args, first)]
    if op is aten.embedding:
        table = labels.tensors[1]
        rec.set_role(table, "out")
        return [Labels((table[:1].reshape(*[1] * (first.ndim - 1), -1).expand(first.shape),))]
    by_count, along = f"{op} divides by the number of its channels", f"{op} runs along its channels"
    if op in NORMS:
        rec.mix(labels, range(-len(args[1]), 0), by_count, rec.module)
        return [_elementwise(rec, [args[0], *args[2:4]], first)]
    if op in COPIES | LIKE:
        return [replace(labels, zero=False) if labels and op in (aten.ones_like, aten.full_like) else labels]
    if op is aten.copy_:
        return [_write(args[0], labels_of(args[1]))]
    if op in LOOKUPS:
        return [_look_up(rec, op, args, first)]
    if op in (aten.cat, aten.stack):
        return [_join(rec, op, args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0))]
    if op is aten.view_as_complex:
        return [labels.map(lambda t: combine(rec, t[..., 0], t[..., 1]))]
    if op is aten.view_as_real:
        return [labels.map(lambda t: t.unsqueeze(-1).expand(first.shape))]
    if op in MOVES or func.is_view:
        return _move(func, args, kwargs, out)
    if op in SOFTMAXES:
        rec.mix(labels, [args[1]], along)
        return [labels and replace(labels, zero=labels.zero and "softmax" not in str(op))]
    if op in REDUCTIONS:
        order, rest = (args[1], args[1:]) if op is aten.linalg_vector_norm and len(args) > 1 else (2, args)
        dims = rest[1] if len(rest) > 1 and isinstance(rest[1], (list, int)) else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or range(args[0].ndim)
        if op in MEANS:
            rec.mix(labels, dims, by_count, rec.module)
        elif op in EXTREMES or order < 0:
            rec.mix(labels, dims, along)
        else:
            rec.add_up(labels, dims, op)
        return [_drop_unless_constant(labels, dims, first.ndim == args[0].ndim)]
    if op in SELECTIONS:
        rec.pin(labels, f"{op} picks among its channels")
    operands = tensors_in([*args, *kwargs.values()])
    if torch.Tag.pointwise in func.tags:
        result = replace(_elementwise(rec, operands, first), zero=_keeps_zero(func, args, kwargs))
        in_place = func._schema.is_mutable and result.source == "activation"
        return [_write(first, result) if in_place and first._base is not None else result]
    if op in SELECTIONS | FACTORIES or not (first.is_floating_point() or first.is_complex()):
        return [None]
    return _pin_all(rec, op, operands, tensors_in([out]))


def _pin_all(rec: Recording, op, operands: list, outputs: list) -> list[Labels]:
    """Pin the operands and outputs of an operator without a rule."""
    mark = rec.new_labels(1)
    for labels in [*map(labels_of, operands), Labels((mark,))]:
        rec.pin(labels, f"{NO_RULE} {op}")
    marks = [Labels((mark.view([1] * out.ndim).expand(out.shape),)) for out in outputs]
    return [labels if out.is_floating_point() else None for labels, out in zip(marks, outputs, strict=True)]


def _keeps_zero(func, args: tuple, kwargs: dict) -> bool:
    """Test if an element-wise operator maps masked entries to zero, by running it on scalars."""
    numbers = iter(range(7, 99))

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:  # zero if masked entries are, else arbitrary
        labels = labels_of(tensor)
        masked = labels is not None and labels.zero
        if masked and labels.source != "activation":
            has_entries = labels.source == "parameter" and tensor.numel() > 1
            masked = has_entries and func.overloadpacket is not aten.div
        number = next(numbers) / 10 if tensor.is_floating_point() else 1
        return torch.full((), 0 if masked else number, dtype=tensor.dtype)

    args, kwargs = tree_map_only(torch.Tensor, stand_in, (args, kwargs))
    return not func(*args, **kwargs).any()


def _write(target: torch.Tensor, labels: Labels | None) -> Labels | None:
    """Copy labels into a tensor that is filled part by part: into its part of the base tensor's labels."""
    base = target if target._base is None else target._base
    before = labels_of(base)
    table = torch.empty_strided(base.shape, base.stride(), dtype=torch.int64)
    table.copy_(torch.tensor(-1) if before is None else before.tensors[0])
    part = table.as_strided(target.shape, target.stride(), target.storage_offset())
    part.copy_(torch.tensor(-1) if labels is None else labels.tensors[0])
    zero = all(x is None or x.zero for x in (before, labels))
    set_labels(base, Labels((table,), zero=zero))
    return Labels((part,), zero=zero)


def _look_up(rec: Recording, op, args: tuple, out: torch.Tensor) -> Labels | None:
    """Return the labels of indexed entries; an index that the model computes (a router's) has no values."""
    labels = labels_of(args[0])
    if labels is None:
        return None
    indices = args[1] if op is aten.index else [args[2]]
    dims = [d for d, i in enumerate(indices) if i is not None] if op is aten.index else [args[1]]
    if all(i is None or i.device.type == "cpu" for i in indices):
        return labels.map(lambda t: op(t, *args[1:]))
    kept = []
    for table in labels.tensors:  # keep those that do not depend on the index
        if all(same_along(table, d % table.ndim) for d in dims):
            zeros = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in indices]
            kept.append(op(table, zeros) if op is aten.index else op(table, args[1], zeros[0]))
        else:
            rec.pin(Labels((table,), labels.source), "the model selects some of them while it runs")
            if labels.source == "parameter" and dims == [0]:
                rec.stacks.add(rec.owner_of(int(table[(0,) * table.ndim]))[0])
    return replace(labels, tensors=tuple(kept)) if kept else None


def _product(rec: Recording, op, args: tuple, out: torch.Tensor) -> Labels | None:
    bias, (a, b) = (args[0], args[1:3]) if op in (aten.addmm, aten.baddbmm) else (None, args[:2])
    flat = op in (aten.mm, aten.addmm)
    la, lb = labels_of(a), labels_of(b)
    if flat:
        la, lb = (None if x is None else x.map(lambda t: t.unsqueeze(0)) for x in (la, lb))
    labels = multiply(rec, la, lb, tuple(out.unsqueeze(0).shape if flat else out.shape))
    if labels is not None and flat:
        labels = labels.map(lambda t: t.squeeze(0))
    if bias is None or labels_of(bias) is None:
        return labels
    set_labels(out, labels)
    return _elementwise(rec, [out, bias], out)


def _elementwise(rec: Recording, operands: list, out: torch.Tensor) -> Labels | None:
    labelled = [labels for labels in map(labels_of, operands) if labels is not None]
    activations = [x for x in labelled if x.source == "activation"]
    fixed = [x for x in labelled if x.source != "activation"]
    if not activations:  # a result of parameters and constants keeps one label tensor for each dim
        for table, other in zip(fixed[0].tensors, fixed[-1].tensors, strict=False):
            if len(fixed) > 1 and fixed[0].source == fixed[-1].source == "parameter":
                combine(rec, table, other)
        source = min((x.source for x in fixed), key=["parameter", "constant"].index)
        return Labels(tuple(t.expand(out.shape) for x in fixed for t in x.tensors), source)
    result = activations[0].tensors[0]
    for other in activations[1:]:
        result = combine(rec, result, other.tensors[0])
    for labels in fixed:
        for table in labels.tensors:
            combine(rec, result, table)
            if labels.source == "parameter":
                rec.set_role(table, "out", only_if_new=True)
    return Labels((result.expand(out.shape),))


def _join(rec: Recording, op, parts: list, dim: int) -> Labels:
    """Return the labels of a concatenation, -1 for unlabelled parts.

    A parameter that is concatenated with activations along a dim on which neither varies (an attention sink
    with the scores of its head) joins their groups.
    """
    labels = [labels_of(part) for part in parts]
    if op is aten.cat and (first := next((x for x in labels if x and x.source == "activation"), None)):
        lane = first.tensors[0].narrow(dim, 0, 1)
        for i, x in enumerate(labels):
            if x and x.source == "parameter" and same_along(first.tensors[0], dim):
                for table in x.tensors:
                    combine(rec, lane, table.narrow(dim, 0, 1))
                    rec.set_role(table, "out", only_if_new=True)
                labels[i] = Labels((lane.expand(parts[i].shape),))
    labelled = [x for x in labels if x is not None]
    tables = []
    for i in range(max(len(x.tensors) for x in labelled)):
        of_parts = (None if x is None else x.tensors[min(i, len(x.tensors) - 1)] for x in labels)
        pairs = zip(parts, of_parts, strict=True)
        tables.append(op([torch.full(p.shape, -1) if x is None else x for p, x in pairs], dim))
    return Labels(tuple(tables), labelled[0].source, all(x.zero for x in labelled))


def _move(func, args: tuple, kwargs: dict, out) -> list[Labels | None]:
    """Execute an operator that only moves entries on the label tables of its input."""
    labels = labels_of(args[0])
    if labels is None:
        return [None]
    if func.overloadpacket in (aten.view, aten._unsafe_view):
        return [labels.map(lambda t: t.reshape(args[1]))]
    moved = [func(t, *args[1:], **kwargs) for t in labels.tensors]
    parts = zip(*moved, strict=True) if isinstance(out, (tuple, list)) else [moved]
    return [replace(labels, tensors=tuple(tables)) for tables in parts]


def _drop_unless_constant(labels: Labels, dims, keepdim: bool) -> Labels | None:
    """Drop the labels of reduced entries, unless all of them carry the same label."""
    table = labels.tensors[0]
    dims = sorted((d % table.ndim for d in dims), reverse=True)
    if labels.source != "activation" or not all(same_along(table, d) for d in dims):
        return None
    for dim in dims:
        table = table.narrow(dim, 0, 1) if keepdim else table.select(dim, 0)
    return replace(labels, tensors=(table,))


def numbers_in(func, args: tuple, kwargs: dict) -> list[float]:
    """Return the numbers that an operator computes with, and the bounds of slices of unlabelled tensors."""
    op = func.overloadpacket
    if op is aten.slice and labels_of(args[0]) is None and args[0].is_floating_point():
        return [float(x) for x in args[2:]]
    if torch.Tag.pointwise not in func.tags and op not in FILLS | PRODUCTS:
        return []
    values = [*args, *kwargs.values()]
    scalars = [x for x in values if isinstance(x, torch.Tensor) and not (x.ndim or x.is_meta)]
    return [float(x) for x in (*scalars, *(x for x in values if type(x) in (int, float)))]


def tensors_in(values) -> list[torch.Tensor]:
    """Return all tensors in a list of arguments, including those in nested lists and dicts."""
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
