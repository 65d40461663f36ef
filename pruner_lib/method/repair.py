"""Repair in closed form, beyond the paper: no gradients and no training.

A group speaks to the rest of the model through one matrix alone, its last (o_proj, down_proj), which reads
one or more columns of the group. With x what that matrix reads, G the mean of x x' over the calibration
tokens, and k the columns that stay, `repair_` moves what the lost columns did to those that stay, and
`obs_scores` scores a group by what such a fit would leave undone. Both walk through the decoder layers one
by one, with one layer's inputs in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruner_lib.method.checks import require
from pruner_lib.method.decoder import decoder_layers, residual_stream
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Axes, Axis, Member, Plan
from pruner_lib.method.offload import check_in_memory, frozen, input_device
from pruner_lib.method.options import check_ids
from pruner_lib.method.prune import gone_entries

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # tried by `repair_`, in units of the mean diagonal of G
BATCH = 8  # samples that run at a time


@dataclass(frozen=True)
class Repair:
    """How one matrix was repaired; errors are |W'x - Wx|^2 / |Wx|^2 over tokens, W the whole matrix.

    Args:    ridge: the lambda that was chosen, in units of the mean diagonal of G.
             fitted: error of the fit on the tokens of its own, at that ridge.
             held_out: ridge -> error on tokens that the fit has not seen.
             cut: error on these tokens if nothing is repaired.
    """

    ridge: float
    fitted: float
    held_out: Mapping[float, float]
    cut: float


def repair_(
    model: nn.Module,
    plan: Plan,
    calibration_ids: Tensor,
    *,
    axes: Axes | None = None,
    ridges: Sequence[float] = RIDGES,
) -> dict[str, Repair]:
    """Prepare a whole model for a cut: the columns that will stay take over what the others did.

        W'_k = (W G_:k + lambda W_k) (G_kk + lambda I)^-1        W' = 0 in the columns that will go

    G is that of the model whose earlier layers are repaired already. A fifth of the samples, at least one, is
    held out to choose lambda; the fit itself is made on all of them. `prune_` with the same plan comes after.

    Args:    model: whole, to be changed: the last matrix of each axis that the plan cuts.
             plan: of `select`, with granularity "block"; heads and MLP channels, no hidden channels.
             calibration_ids: `(samples, tokens)` int64, at least 2 samples; thousands of tokens are better
                 than the paper's 640.
             axes: of the model, if at hand, to save discovering them again.
             ridges: to choose lambda from, above 0, in units of the mean diagonal of G.
    Returns: name of the weight -> how it was repaired.
    Raises:  ValueError: the plan is of another kind or another model, there is one sample alone, a ridge is
             not above 0, or a last matrix is no linear layer, as in a stack of experts. Nothing is changed.
    Source:  not in the paper. Least squares on the inputs as in Frantar and Alistarh, SparseGPT (2023), but
             for whole groups, pulled to the old weights, and with lambda chosen on tokens held out.
    """
    check_in_memory(model)
    check_ids(model, calibration_ids)
    require(Plan, plan=plan)
    require(["(0, inf)"], ridges=ridges)
    if len(calibration_ids) < 2:
        raise ValueError("repair_ holds samples out to choose lambda: it needs at least 2, got 1")
    axes = discover(model, query_heads=plan.query_heads) if axes is None else axes
    lost = _lost_columns(model, axes, plan)
    n_held = max(1, len(calibration_ids) // 5)
    repairs = {}
    for inputs in _walk(model, calibration_ids, list(lost), changing=True):
        for name, x in inputs.items():  # (samples, tokens, columns)
            repairs[name] = _repair_(model, name, lost[name], x, n_held, ridges)
    return repairs


def obs_scores(
    model: nn.Module, axes: Mapping[str, Axis], calibration_ids: Tensor, *, ridge: float = 0.1
) -> dict[str, Tensor]:
    """Score each group by what the best repair would leave of its loss, in two forward passes.

        I_g = trace(W_g H_gg^-1 W_g')        H = (G + lambda I)^-1, W_g: the columns of the group

    Args:    axes: of `discover`, heads and MLP channels.    calibration_ids: `(samples, tokens)` int64.
             ridge: lambda, in units of the mean diagonal of G.
    Returns: axis name -> `(n_groups,)` float32; higher means keep.
    Raises:  ValueError: ids that do not fit the model, or a last matrix that is no linear layer.
    Source:  not in the paper. Hassibi and Stork, optimal brain surgeon (1993), for blocks of columns.
    """
    check_in_memory(model)
    check_ids(model, calibration_ids)
    last = {name: _last(model, axis) for name, axis in axes.items() if axis.layer is not None}
    scores = {}
    for inputs in _walk(model, calibration_ids, [member.parameter for member in last.values()]):
        for axis, member in last.items():
            if member.parameter in inputs:
                gram = _gram(inputs[member.parameter])
                gram.diagonal().add_(ridge * gram.diagonal().mean())
                hessian = torch.cholesky_inverse(torch.linalg.cholesky(gram))
                at = member.indices.to(gram.device)  # (n_groups, width)
                blocks = hessian[at[:, :, None], at[:, None, :]]  # (n_groups, width, width)
                columns = _matrix(model, member.parameter).double().T[at]  # (n_groups, width, out)
                left = torch.linalg.solve(blocks, columns) * columns
                scores[axis] = left.sum((1, 2)).float().cpu()
    return scores


def _lost_columns(model: nn.Module, axes: Axes, plan: Plan) -> dict[str, Tensor]:
    """Name of each last weight that is cut -> the columns that go."""
    lost: dict[str, list[Tensor]] = {}
    for key, kept in plan.cut.items():
        if key not in axes or axes[key].layer is None:
            raise ValueError(
                f"repair_ mends heads and MLP channels, but the plan cuts {key}: make it with "
                "granularity='block' and dependency=True, from discover(model)"
            )
        plan.check_count(key, axes[key].n_groups)
        member = _last(model, axes[key])
        lost.setdefault(member.parameter, []).append(gone_entries(axes[key], member, kept))
    return {name: torch.cat(columns) for name, columns in lost.items()}


def _last(model: nn.Module, axis: Axis) -> Member:
    """The weight through which the groups of an axis act on the rest of the model."""
    inputs = [m for m in axis.members if m.structure == axis.last and m.role == "in"]
    if len(inputs) != 1 or model.get_parameter(inputs[0].parameter).ndim != 2:
        raise ValueError(
            f"the last matrix of {axis.name}, {axis.last}, is no linear layer: it can be cut, but not "
            "repaired"
        )
    return inputs[0]


def _matrix(model: nn.Module, name: str) -> Tensor:
    """A view of a linear layer's weight as `(out, in)`; GPT-2's Conv1D holds it the other way round."""
    weight = model.get_parameter(name).detach()
    linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    return weight if linear else weight.T


def _walk(
    model: nn.Module, ids: Tensor, names: Sequence[str], *, changing: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield for one layer after the other what the named weights read: `(samples, tokens, columns)` each.

    Args:    changing: a layer is changed before the next one is asked for; it runs again, so that the later
             ones see that.
    """
    path, layers = decoder_layers(model)
    with frozen(model), torch.no_grad():
        states, calls = _calls(model, layers, ids)
        for number, layer in enumerate(layers):
            prefix = f"{path}.{number}."
            inputs: dict[str, list[Tensor]] = {name: [] for name in names if name.startswith(prefix)}
            with ExitStack() as stack:
                for name, seen in inputs.items():
                    module = model.get_submodule(name.rpartition(".")[0])
                    hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                    stack.callback(hook.remove)
                outputs = [_run(layer, x, call[number]) for x, call in zip(states, calls, strict=True)]
            if inputs:
                yield {name: torch.cat(seen) for name, seen in inputs.items()}
            if inputs and changing:
                outputs = [_run(layer, x, call[number]) for x, call in zip(states, calls, strict=True)]
            states = outputs


def _calls(model: nn.Module, layers: nn.ModuleList, ids: Tensor) -> tuple[list[Tensor], list[list[tuple]]]:
    """Run the model: for each batch what the first layer reads, and how each layer is called besides."""
    states, calls, chain = [], [], []

    def before(_layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        first, others = (args[:1], args[1:]) if args else ((kwargs["hidden_states"],), ())
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if not calls[-1]:
            states.append(first[0])
        elif first[0] is not chain[-1]:
            raise ValueError(
                f"{type(model).__name__} changes the residual stream between its layers: it can be cut, but "
                "not repaired layer by layer"
            )
        calls[-1].append((others, rest))

    def after(_layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        chain[:] = [residual_stream(output)]

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after).remove)
        for batch in ids.to(input_device(model)).split(BATCH):
            calls.append([])
            model(batch, use_cache=False)
    return states, calls


def _run(layer: nn.Module, x: Tensor, call: tuple[tuple, dict[str, Any]]) -> Tensor:
    return residual_stream(layer(x, *call[0], **call[1]))


def _gram(x: Tensor) -> Tensor:
    """`(samples, tokens, columns)` -> the mean of x x' over tokens, `(columns, columns)` float64."""
    rows = x.flatten(0, -2).float()
    return (rows.T @ rows).double() / len(rows)


def _repair_(
    model: nn.Module, name: str, lost: Tensor, x: Tensor, n_held: int, ridges: Sequence[float]
) -> Repair:
    """Choose lambda on the last `n_held` samples of x, fit one weight on all of them, and write it."""
    weight = _matrix(model, name)  # (out, in)
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    kept[lost.to(weight.device)] = False
    gram = _gram(x[:-n_held])
    fits = {ridge: _fit(weight.double(), gram, kept, ridge).float() for ridge in ridges}
    seen, unseen = _Outputs(weight, x[:-n_held]), _Outputs(weight, x[-n_held:])
    errors = {ridge: unseen.error(fit) for ridge, fit in fits.items()}
    best, unrepaired = min(errors, key=errors.get), unseen.error(weight * kept)
    weight.copy_(_fit(weight.double(), _gram(x), kept, best))
    return Repair(best, seen.error(fits[best]), errors, unrepaired)


class _Outputs:
    """What a whole weight makes of its inputs, to compare other weights with."""

    def __init__(self, weight: Tensor, x: Tensor) -> None:
        self.x = x.flatten(0, -2).float()  # (tokens, in)
        self.y = self.x @ weight.float().T  # (tokens, out)

    def error(self, changed: Tensor) -> float:
        """|W'x - Wx|^2 / |Wx|^2 over all tokens."""
        return float((self.x @ changed.float().T - self.y).square().sum() / self.y.square().sum())


def _fit(whole: Tensor, gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The weight `(out, in)` that does best with the kept columns alone; zero in the others. All float64."""
    pull = ridge * gram.diagonal().mean()
    among = gram[kept][:, kept]
    among.diagonal().add_(pull)
    wanted = whole @ gram[:, kept] + pull * whole[:, kept]  # (out, kept)
    fitted = torch.zeros_like(whole)
    fitted[:, kept] = torch.cholesky_solve(wanted.T, torch.linalg.cholesky(among)).T
    return fitted
