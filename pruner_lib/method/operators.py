"""What every operator does to labels: one rule for a kind of operator, none for an architecture.

Operators that move data are executed on the labels, those that combine two labelled tensors record what
depends on what, reductions forget. What an operator without a rule touches is pinned: it can't be cut, and
discovery says so by the operator's name.
See `trace` for the forward pass that calls these rules, `labels` for what a product or a sum ties together.
"""

from __future__ import annotations

import torch

from pruner_lib.method.labels import (
    Labels,
    Recording,
    combine,
    constant_along,
    labels_of,
    multiply,
    set_labels,
)

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}
NORMS = {aten.native_layer_norm, aten._fused_rms_norm}
SOFTMAXES = {aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod}  # along a dim; the shape stays
REDUCTIONS = {
    aten.sum,
    aten.mean,
    aten.amax,
    aten.amin,
    aten.var,
    aten.linalg_vector_norm,
    aten.var_mean,
    aten.prod,
}
SELECTIONS = {aten.topk, aten.sort, aten.argmax, aten.any, aten.all}  # which entry won, not what it holds
NO_RULE = "no dependency rule for"
LOOKUPS = {aten.index, aten.index_select, aten.gather}
WRITES = {aten.copy_}
MOVES = {
    aten._unsafe_view,
    aten.cat,
    aten.stack,
    aten.repeat,
    aten.flip,
    aten.roll,
    aten.constant_pad_nd,
    aten.split_with_sizes,
}
COPIES = {
    aten._to_copy,
    aten.clone,
    aten.lift_fresh,
    aten.contiguous,
    aten.native_dropout,
    aten.triu,
    aten.tril,
    aten.copy,
    aten.empty_like,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
}
FACTORIES = {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided}


def labels_for(rec: Recording, func, args: tuple, kwargs: dict, out) -> list[Labels | None]:
    """Labels of the outputs of one operator call, in the order of its output tensors."""
    op = func.overloadpacket
    first = out[0] if isinstance(out, (tuple, list)) else out
    if op in PRODUCTS:
        return [_product(rec, op, args, first)]
    if op is aten.embedding:
        table = labels_of(args[0]).tensors[1]
        rec.set_role(table, "out")
        return [Labels((table[:1].reshape(*[1] * (first.ndim - 1), -1).expand(first.shape),))]
    if op in NORMS:
        return [_elementwise(rec, [args[0], *args[2:4]], first)]
    if op in COPIES:
        return [labels_of(args[0])]
    if op in WRITES:
        return [_write(args[0], labels_of(args[1]))]
    if op in LOOKUPS:
        return [_look_up(rec, op, args, first)]
    if op in MOVES or func.is_view:
        return _move(func, args, kwargs, out)
    if op in SOFTMAXES:
        labels = labels_of(args[0])
        kept = _drop_unless_constant(labels, [args[1]], keepdim=None)
        if kept is None:
            rec.pin(labels, f"{op} runs along its channels")
        return [kept]
    if op in REDUCTIONS:
        dims = args[1] if len(args) > 1 and isinstance(args[1], (list, int)) else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        keepdim = first.ndim == args[0].ndim
        return [_drop_unless_constant(labels_of(args[0]), dims or range(args[0].ndim), keepdim)]
    if op in FACTORIES:
        return [None]
    if op in SELECTIONS or not (first.is_floating_point() or first.is_complex()):
        if first.is_floating_point():
            rec.pin(labels_of(args[0]), f"{op} picks among its channels")
        return [None]
    operands = tensors_in([*args, *kwargs.values()])
    if torch.Tag.pointwise in func.tags:
        return [_elementwise(rec, operands, first)]
    return _pin_all(rec, op, operands, tensors_in([out]))


def _pin_all(rec: Recording, op, operands: list, outputs: list) -> list[Labels]:
    """Nothing is known of this operator: what goes in stays whole, and so does what comes out."""
    reason = f"{NO_RULE} {op}"
    for tensor in operands:
        rec.pin(labels_of(tensor), reason)
    mark = rec.new_labels(1)
    fresh = Labels((mark,))
    rec.pin(fresh, reason)
    return [
        Labels((mark.view([1] * out.ndim).expand(out.shape),)) if out.is_floating_point() else None
        for out in outputs
    ]


def _write(target: torch.Tensor, labels: Labels | None) -> Labels | None:
    """Copy labels into a tensor that is filled part by part: into that part of its base's labels."""
    base = target if target._base is None else target._base
    known = labels_of(base)
    table = (
        torch.full(base.shape, -1)
        if known is None
        else known.tensors[0].clone(memory_format=torch.contiguous_format)
    )
    if not base.is_contiguous():
        raise ValueError(f"labels can't be written into a tensor of strides {base.stride()}")
    part = table.as_strided(target.shape, target.stride(), target.storage_offset())
    part.copy_(torch.tensor(-1) if labels is None else labels.tensors[0])
    set_labels(base, Labels((table,)))
    return Labels((part,))


def _look_up(rec: Recording, op, args: tuple, out: torch.Tensor) -> Labels | None:
    """Entries picked by an index. An index on the CPU is known and executed; one that the model computes
    (a router's choice of experts) is not, and the labels survive only where they do not depend on it."""
    labels = labels_of(args[0])
    if labels is None:
        return None
    indices = args[1] if op is aten.index else [args[2]]
    dims = [d for d, i in enumerate(indices) if i is not None] if op is aten.index else [args[1]]
    given = [i for i in indices if i is not None]
    if all(i.device.type == "cpu" for i in given):
        return labels.map(lambda t: op(t, *args[1:]))
    kept = []
    for table in labels.tensors:
        if all(constant_along(table, d % table.ndim) for d in dims):
            zeros = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in indices]
            kept.append(op(table, zeros) if op is aten.index else op(table, args[1], zeros[0]))
        else:
            rec.pin(Labels((table,), labels.source), "which of them is used is decided while the model runs")
            if labels.source == "parameter" and dims == [0]:
                rec.stacks.add(rec.owner_of(int(table[(0,) * table.ndim]))[0])
    return Labels(tuple(kept), labels.source) if kept else None


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
    holder = torch.empty_like(out)
    set_labels(holder, labels)
    return _elementwise(rec, [holder, bias], out)


def _elementwise(rec: Recording, operands: list, out: torch.Tensor) -> Labels | None:
    found = [labels for labels in map(labels_of, operands) if labels is not None]
    activations = [x for x in found if x.source == "activation"]
    fixed = [x for x in found if x.source != "activation"]
    if not activations:  # parameters and constants among themselves keep one label tensor for each dim
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
                first = next((int(x) for x in table.reshape(-1)[:1]), -1)
                rec.roles.setdefault(rec.owner_of(first)[:2], "out")
    return Labels((result.expand(out.shape),))


def _move(func, args: tuple, kwargs: dict, out) -> list[Labels | None]:
    """Execute an operator that only moves entries on the label tensors of its input."""
    op = func.overloadpacket
    if op in (aten.cat, aten.stack):
        parts, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
        known = [labels_of(p) for p in parts]
        source = next(x for x in known if x is not None).source
        n = max(len(x.tensors) for x in known if x is not None)
        join = torch.cat if op is aten.cat else torch.stack
        tables = [
            join(
                [
                    torch.full(p.shape, -1) if x is None else x.tensors[min(i, len(x.tensors) - 1)]
                    for p, x in zip(parts, known, strict=True)
                ],
                dim,
            )
            for i in range(n)
        ]
        return [Labels(tuple(tables), source)]
    labels = labels_of(args[0])
    if labels is None:
        return [None]
    if op in (aten.view, aten._unsafe_view):
        return [labels.map(lambda t: t.reshape(args[1]))]
    moved = [func(t, *args[1:], **kwargs) for t in labels.tensors]
    if isinstance(out, (tuple, list)):
        return [Labels(tuple(parts), labels.source) for parts in zip(*moved, strict=True)]
    return [Labels(tuple(moved), labels.source)]


def _drop_unless_constant(labels: Labels, dims, keepdim: bool | None) -> Labels | None:
    """Reductions forget which entry they came from, unless all that are reduced carry the same label."""
    dims = [d % labels.tensors[0].ndim for d in dims]
    if labels.source != "activation" or not all(constant_along(labels.tensors[0], d) for d in dims):
        return None
    if keepdim is None:  # softmax: the shape stays
        return labels
    table = labels.tensors[0]
    for dim in sorted(dims, reverse=True):
        table = table.narrow(dim, 0, 1) if keepdim else table.select(dim, 0)
    return Labels((table,))


def tensors_in(values) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found
