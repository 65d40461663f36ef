"""Repair in closed form, beyond the paper: no gradients and no training.

A group speaks to the rest of the model through one matrix alone, its last (o_proj, down_proj), which reads
one or more columns of the group. With x what that matrix reads, G the mean of x x' over the calibration
tokens, and k the columns that stay, `repair_` moves what the lost columns did to those that stay, and
`obs_scores` scores a group by what such a fit would leave undone. Both look at one layer after the other
while the model runs, with one layer's inputs in memory at a time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pruner_lib.method.checks import require
from pruner_lib.method.decoder import decoder_layers, prompt_for
from pruner_lib.method.groups import Axes, Axis, Member, Plan
from pruner_lib.method.norms import norm_members
from pruner_lib.method.offload import check_in_memory, evaluating, frozen, input_device
from pruner_lib.method.options import check_ids
from pruner_lib.method.prune import axes_of, gone_entries

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # tried by `repair_`, in units of the mean diagonal of G


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
    held out to choose lambda (a fifth of the rows, where a matrix reads some of the tokens); the fit itself
    is made on all of them. `prune_` with the same plan comes after.

    Args:    model: whole, to be changed: the last matrix of each axis that the plan cuts.
             plan: of `select`, with granularity "block"; heads and MLP channels, no hidden channels.
             calibration_ids: `(samples, tokens)` int64, at least 2 samples; thousands of tokens are better
                 than the paper's 640.
             axes: of the model, if at hand, to save discovering them again.
             ridges: to choose lambda from, above 0, in units of the mean diagonal of G.
    Returns: name of the weight -> how it was repaired.
    Raises:  ValueError: the plan is of another kind or another model, there is one sample alone, a ridge is
             not above 0, a last matrix is no linear layer, as in a stack of experts, or one that several
             modules share, groups meet before it, as in a norm over all heads, or the model runs its layers
             more than once. Nothing is changed.
    Source:  not in the paper. Least squares on the inputs as in Frantar and Alistarh, SparseGPT (2023), but
             for whole groups, pulled to the old weights, and with lambda chosen on tokens held out.
    """
    check_in_memory(model)
    check_ids(model, calibration_ids)
    require(Plan, plan=plan)
    require(["(0, inf)"], ridges=ridges)
    if len(calibration_ids) < 2:
        raise ValueError("repair_ holds samples out to choose lambda: it needs at least 2, got 1")
    axes = axes_of(model, plan, axes)
    lost = _lost_columns(model, axes, plan)
    share = max(1, len(calibration_ids) // 5) / len(calibration_ids)  # held out
    repairs = {}

    def mend(inputs: dict[str, list[Tensor]]) -> None:
        for name, calls in inputs.items():
            repairs[name] = _repair_(_matrix(model, name), lost[name], calls, share, ridges)

    _visit_inputs(model, calibration_ids, lost, mend)
    return repairs


def obs_scores(
    model: nn.Module, axes: Mapping[str, Axis], calibration_ids: Tensor, *, ridge: float = 0.1
) -> dict[str, Tensor]:
    """Score each group by what the best repair would leave of its loss, in two forward passes.

        I_g = trace(W_g H_gg^-1 W_g')        H = (G + lambda I)^-1, W_g: the columns of the group

    Args:    axes: of `discover`, heads and MLP channels.    calibration_ids: `(samples, tokens)` int64.
             ridge: lambda, in units of the mean diagonal of G.
    Returns: axis name -> `(n_groups,)` float32; higher means keep.
    Raises:  ValueError: ids that do not fit the model, or a model or axes that `repair_` refuses.
    Source:  not in the paper. Hassibi and Stork, optimal brain surgeon (1993), for blocks of columns.
    """
    check_in_memory(model)
    check_ids(model, calibration_ids)
    last = {name: _last(model, axis) for name, axis in axes.items() if axis.layer is not None}
    scores = {}

    def score(inputs: dict[str, list[Tensor]]) -> None:
        for axis, member in last.items():
            if member.parameter in inputs:
                gram = _gram(torch.cat(inputs[member.parameter]))
                gram.diagonal().add_(ridge * gram.diagonal().mean())
                hessian = torch.cholesky_inverse(torch.linalg.cholesky(gram))
                at = member.indices.to(gram.device)  # (n_groups, width)
                blocks = hessian[at[:, :, None], at[:, None, :]]  # (n_groups, width, width)
                columns = _matrix(model, member.parameter).double().T[at]  # (n_groups, width, out)
                left = torch.linalg.solve(blocks, columns) * columns
                scores[axis] = left.sum((1, 2)).float().cpu()

    _visit_inputs(model, calibration_ids, [member.parameter for member in last.values()], score)
    return scores


def _lost_columns(model: nn.Module, axes: Axes, plan: Plan) -> dict[str, Tensor]:
    """Name of each last weight that is cut -> the columns that go."""
    lost: dict[str, list[Tensor]] = {}
    for key, kept in plan.cut.items():
        if key not in axes or axes[key].layer is None:
            advice = "make it with granularity='block' and dependency=True, from discover(model)"
            raise ValueError(f"repair_ mends heads and MLP channels, but the plan cuts {key}: {advice}")
        plan.check_count(key, axes[key].n_groups)
        member = _last(model, axes[key])
        lost.setdefault(member.parameter, []).append(gone_entries(axes[key], member, kept))
    return {name: torch.cat(columns) for name, columns in lost.items()}


def _last(model: nn.Module, axis: Axis) -> Member:
    """The weight through which the groups of an axis act on the rest of the model."""
    inputs = [m for m in axis.members if m.structure == axis.last and m.role == "in"]
    meet = [m.structure for m in axis.members if m.structure != axis.last and m.role == "in"]
    meet += [m.structure for m in norm_members(model, axis.members, axis.side_by_side)]
    if meet:
        why = f"meet in {meet[0]}, so that {axis.last} reads something else: they may be cut, not repaired"
        raise ValueError(f"the groups of {axis.name} {why}; leave them whole by ignore, or out of the axes")
    if len(inputs) != 1 or model.get_parameter(inputs[0].parameter).ndim != 2:
        raise ValueError(f"{axis.last}, last of {axis.name}, is not linear: it can be cut, but not repaired")
    weight = model.get_parameter(inputs[0].parameter)
    if sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1:
        why = "belongs to several modules, whose inputs no one layer has: it can be cut, but not repaired"
        raise ValueError(f"{axis.last}, last of {axis.name}, {why}; leave it whole by ignore")
    return inputs[0]


def _matrix(model: nn.Module, name: str) -> Tensor:
    """A view of a linear layer's weight as `(out, in)`; GPT-2's Conv1D holds it the other way round."""
    weight = model.get_parameter(name).detach()
    linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    return weight if linear else weight.T


class _AllSeen(Exception):
    """Ends a forward pass whose last layers and logits nobody needs."""


def _visit_inputs(model: nn.Module, ids: Tensor, names: Collection[str], visit: Callable) -> None:
    """Run the model and show, for one layer after the other, what the named weights read.

    Args:    visit: takes name -> what each call of its module reads, `(samples * tokens, columns)`, and may
             change these weights: the layer runs again afterwards, so that the later ones see that.
    """
    layers, runs, left = decoder_layers(model)[1], [], set(names)
    with evaluating(model), ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(lambda *_: runs.append(1)))
        model(prompt_for(model, tokens=3).to(input_device(model)), use_cache=False)
    if len(runs) > len(layers):
        what = f"{type(model).__name__} runs its {len(layers)} decoder layers more than once"
        raise ValueError(f"{what}, so that their matrices read several inputs: they can be cut, not repaired")
    inputs: dict[str, list[Tensor]] = {}  # of the layer that runs

    def look(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x, *_ = *args, *kwargs.values()
        x = x.transpose(0, 1) if x.ndim == 3 and x.shape[:2] == ids.T.shape else x  # tokens come first
        inputs.setdefault(name, []).append(x.flatten(0, -2))

    def after(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        left.difference_update(inputs)
        if inputs:
            visit(dict(inputs))
            inputs.clear()
            output = layer.forward(*args, **kwargs) if left else output
            inputs.clear()
        if not left:
            raise _AllSeen
        return output

    with frozen(model), torch.no_grad(), ExitStack() as stack, suppress(_AllSeen):
        for name in names:
            module, hook = model.get_submodule(name.rpartition(".")[0]), partial(look, name)
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(after, with_kwargs=True))
        model(ids.to(input_device(model)), use_cache=False)


def _gram(x: Tensor) -> Tensor:
    """`(tokens, columns)` -> the mean of x x' over tokens, `(columns, columns)` float64."""
    if not x.isfinite().all():
        raise ValueError("a layer reads NaN or infinite numbers; check the weights, or load them in float32")
    rows = x.float()
    return (rows.T @ rows).double() / len(rows)


def _repair_(
    weight: Tensor, lost: Tensor, calls: Sequence[Tensor], share: float, ridges: Sequence[float]
) -> Repair:
    """Choose lambda on the last `share` of each call's rows, fit the weight `(out, in)` on all; write it."""
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    kept[lost.to(weight.device)] = False
    held = [max(1, round(share * len(x))) for x in calls]
    for_fit = torch.cat([x[:-n] for x, n in zip(calls, held, strict=True)])  # (tokens, in)
    held_out = torch.cat([x[-n:] for x, n in zip(calls, held, strict=True)])
    fits = _fits(weight.double(), _gram(for_fit), kept, ridges)
    seen, unseen = _error_of(weight, for_fit), _error_of(weight, held_out)
    errors = {ridge: unseen(fit) for ridge, fit in fits.items()}
    best = min(errors, key=errors.get)
    repair = Repair(best, seen(fits[best]), errors, unseen(weight * kept))
    weight.copy_(_fits(weight.double(), _gram(torch.cat(calls)), kept, [best])[best])
    return repair


def _error_of(weight: Tensor, x: Tensor) -> Callable[[Tensor], float]:
    """Return what gives the error of a changed weight, |W'x - Wx|^2 / |Wx|^2 over all tokens."""
    rows = x.float()  # (tokens, in)
    whole = rows @ weight.float().T  # (tokens, out)
    return lambda changed: float((rows @ changed.float().T - whole).square().sum() / whole.square().sum())


def _fits(whole: Tensor, gram: Tensor, kept: Tensor, ridges: Sequence[float]) -> dict[float, Tensor]:
    """Ridge -> the weight `(out, in)` that does best with the kept columns, zero elsewhere. All float64."""
    wanted, among, fits = whole @ gram[:, kept], gram[kept][:, kept], {}
    for ridge in ridges:
        pull = ridge * gram.diagonal().mean()
        pulled = among.clone()
        pulled.diagonal().add_(pull)
        right = (wanted + pull * whole[:, kept]).T  # (kept, out)
        fits[ridge] = torch.zeros_like(whole)
        fits[ridge][:, kept] = torch.cholesky_solve(right, torch.linalg.cholesky(pulled)).T
    return fits
