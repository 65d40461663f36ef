"""Repair in closed form, without gradients or training (not in the paper).

A group affects the rest of the model through some columns of a single matrix, its last (o_proj, down_proj).
Let x be the input of that matrix, G the mean of x x' over the calibration tokens, and k the kept columns.
`repair_` fits these to replace the removed ones, and `obs_scores` scores a group by the error of such a fit.
Both process one layer at a time while the model runs, with the inputs of one layer in memory.
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
from pruner_lib.method.prune import axes_of, removed_entries

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # tried by `repair_`, in units of the mean diagonal of G


@dataclass(frozen=True)
class Repair:
    """How one matrix was repaired; errors are |W'x - Wx|^2 / |Wx|^2 over tokens, W the dense matrix.

    Args:    ridge: the chosen lambda, in units of the mean diagonal of G.
             fitted: error of the fit on its own tokens, at that ridge.
             held_out: ridge -> error on held-out tokens.
             cut: error on the held-out tokens without repair.
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
    """Prepare a model for a cut: fit the columns to be kept so that they replace the others.

        W'_k = (W G_:k + lambda W_k) (G_kk + lambda I)^-1        W' = 0 in the columns to be removed

    G is computed with the earlier layers repaired. A fifth of the samples, at least one, is held out to
    choose lambda (a fifth of the rows, if a matrix reads only some of the tokens); the final fit uses all of
    them. Call `prune_` with the same plan afterwards.

    Args:    model: not cut yet; the last matrix of each axis that the plan cuts is changed.
             plan: from `select` with granularity "block": heads and MLP channels, no hidden channels.
             calibration_ids: `(samples, tokens)` int64, at least 2 samples; thousands of tokens are better
                 than the paper's 640.
             axes: of the model, if they have been discovered already.
             ridges: positive candidates for lambda, in units of the mean diagonal of G.
    Returns: name of the weight -> how it was repaired.
    Raises:  ValueError: the plan is of another kind or for another model, there is only one sample, a ridge
             is not positive, a last matrix is not linear (a stack of experts), is shared, or reads mixed
             groups (from a norm over all heads), or layers run more than once. Nothing is changed.
    Source:  not in the paper. Least squares on inputs as in Frantar and Alistarh, SparseGPT (2023), but for
             whole groups, regularised towards the old weights, with lambda chosen on held-out tokens.
    """
    check_in_memory(model)
    check_ids(model, calibration_ids)
    require(Plan, plan=plan)
    require(["(0, inf)"], ridges=ridges)
    if len(calibration_ids) < 2:
        raise ValueError("repair_ holds samples out to choose lambda: it needs at least 2, got 1")
    axes = axes_of(model, plan, axes)
    removed = _removed_columns(model, axes, plan)
    share = max(1, len(calibration_ids) // 5) / len(calibration_ids)  # held out
    repairs = {}

    def repair(inputs: dict[str, list[Tensor]]) -> None:
        for name, calls in inputs.items():
            repairs[name] = _repair_(_matrix(model, name), removed[name], calls, share, ridges)

    _visit_inputs(model, calibration_ids, removed, repair)
    return repairs


def obs_scores(
    model: nn.Module, axes: Mapping[str, Axis], calibration_ids: Tensor, *, ridge: float = 0.1
) -> dict[str, Tensor]:
    """Score each group by the error that its removal leaves after the best repair, in two forward passes.

        I_g = trace(W_g H_gg^-1 W_g')        H = (G + lambda I)^-1, W_g: the columns of the group

    Args:    axes: from `discover`, heads and MLP channels.    calibration_ids: `(samples, tokens)` int64.
             ridge: lambda, in units of the mean diagonal of G.
    Returns: axis name -> `(n_groups,)` float32; higher means keep.
    Raises:  ValueError: the ids do not fit the model, or `repair_` refuses the model or axes.
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
                groups = member.indices.to(gram.device)  # (n_groups, width)
                blocks = hessian[groups[:, :, None], groups[:, None, :]]  # (n_groups, width, width)
                columns = _matrix(model, member.parameter).double().T[groups]  # (n_groups, width, out)
                errors = torch.linalg.solve(blocks, columns) * columns
                scores[axis] = errors.sum((1, 2)).float().cpu()

    _visit_inputs(model, calibration_ids, [member.parameter for member in last.values()], score)
    return scores


def _removed_columns(model: nn.Module, axes: Axes, plan: Plan) -> dict[str, Tensor]:
    """Return name of each last weight that is cut -> the columns to remove."""
    removed: dict[str, list[Tensor]] = {}
    for key, kept in plan.cut.items():
        if key not in axes or axes[key].layer is None:
            advice = "make it with granularity='block' and dependency=True, from discover(model)"
            raise ValueError(f"repair_ supports heads and MLP channels, but the plan cuts {key}: {advice}")
        plan.check_count(key, axes[key].n_groups)
        member = _last(model, axes[key])
        removed.setdefault(member.parameter, []).append(removed_entries(axes[key], member, kept))
    return {name: torch.cat(columns) for name, columns in removed.items()}


def _last(model: nn.Module, axis: Axis) -> Member:
    """Return the weight through which the groups of an axis affect the rest of the model."""
    inputs = [m for m in axis.members if m.structure == axis.last and m.role == "in"]
    mixers = [m.structure for m in axis.members if m.structure != axis.last and m.role == "in"]
    mixers += [m.structure for m in norm_members(model, axis.members, axis.side_by_side)]
    advice = "the axis can be cut, but not repaired: ignore it, or leave it out of the axes"
    if mixers:
        raise ValueError(f"{mixers[0]} mixes the groups of {axis.name} before {axis.last}: {advice}")
    if len(inputs) != 1 or model.get_parameter(inputs[0].parameter).ndim != 2:
        raise ValueError(f"{axis.last}, last of {axis.name}, is not linear: {advice}")
    weight = model.get_parameter(inputs[0].parameter)
    if sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1:
        raise ValueError(f"{axis.last}, last of {axis.name}, belongs to several modules: {advice}")
    return inputs[0]


def _matrix(model: nn.Module, name: str) -> Tensor:
    """Return a view of a linear layer's weight as `(out, in)`; GPT-2's Conv1D holds the transpose."""
    weight = model.get_parameter(name).detach()
    linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    return weight if linear else weight.T


class _AllVisited(Exception):
    """Ends a forward pass whose remaining layers and logits are not needed."""


def _visit_inputs(model: nn.Module, ids: Tensor, names: Collection[str], visit: Callable) -> None:
    """Run the model and visit the inputs of the named weights, layer by layer.

    Args:    visit: takes name -> input of each call of its module, `(samples * tokens, columns)`, and may
             change these weights: the layer runs again afterwards, for the later layers.
    """
    layers, runs, waiting = decoder_layers(model)[1], [], set(names)
    with evaluating(model), ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(lambda *_: runs.append(1)))
        model(prompt_for(model, tokens=3).to(input_device(model)), use_cache=False)
    if len(runs) > len(layers):
        message = f"{type(model).__name__} runs its {len(layers)} decoder layers more than once"
        raise ValueError(f"{message}, on several inputs: they can be cut, but not repaired")
    inputs: dict[str, list[Tensor]] = {}  # of the running layer

    def record(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x, *_ = *args, *kwargs.values()
        x = x.transpose(0, 1) if x.ndim == 3 and x.shape[:2] == ids.T.shape else x  # tokens come first
        inputs.setdefault(name, []).append(x.flatten(0, -2))

    def after(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        waiting.difference_update(inputs)
        if inputs:
            visit(dict(inputs))
            inputs.clear()
            output = layer.forward(*args, **kwargs) if waiting else output
            inputs.clear()
        if not waiting:
            raise _AllVisited
        return output

    with frozen(model), torch.no_grad(), ExitStack() as stack, suppress(_AllVisited):
        for name in names:
            module, hook = model.get_submodule(name.rpartition(".")[0]), partial(record, name)
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(after, with_kwargs=True))
        model(ids.to(input_device(model)), use_cache=False)


def _gram(x: Tensor) -> Tensor:
    """Return the mean of x x' over tokens, `(tokens, columns)` -> `(columns, columns)` float64."""
    if not x.isfinite().all():
        raise ValueError("a layer reads NaN or infinity; check the weights, or load them in float32")
    rows = x.float()
    return (rows.T @ rows).double() / len(rows)


def _repair_(
    weight: Tensor, removed: Tensor, calls: Sequence[Tensor], share: float, ridges: Sequence[float]
) -> Repair:
    """Choose lambda on the last `share` of each call's rows; fit the weight `(out, in)` on all, in place."""
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    kept[removed.to(weight.device)] = False
    held = [max(1, round(share * len(x))) for x in calls]
    for_fit = torch.cat([x[:-n] for x, n in zip(calls, held, strict=True)])  # (tokens, in)
    held_out = torch.cat([x[-n:] for x, n in zip(calls, held, strict=True)])
    fits = _fits(weight.double(), _gram(for_fit), kept, ridges)
    fit_error, held_out_error = _error_of(weight, for_fit), _error_of(weight, held_out)
    errors = {ridge: held_out_error(fit) for ridge, fit in fits.items()}
    best = min(errors, key=errors.get)
    repair = Repair(best, fit_error(fits[best]), errors, held_out_error(weight * kept))
    weight.copy_(_fits(weight.double(), _gram(torch.cat(calls)), kept, [best])[best])
    return repair


def _error_of(weight: Tensor, x: Tensor) -> Callable[[Tensor], float]:
    """Return the function changed weight -> |W'x - Wx|^2 / |Wx|^2 over all tokens."""
    rows = x.float()  # (tokens, in)
    dense = rows @ weight.float().T  # (tokens, out)
    return lambda changed: float((rows @ changed.float().T - dense).square().sum() / dense.square().sum())


def _fits(dense: Tensor, gram: Tensor, kept: Tensor, ridges: Sequence[float]) -> dict[float, Tensor]:
    """Return ridge -> the best weight `(out, in)` that is zero outside the kept columns. All float64."""
    target, kept_gram, fits = dense @ gram[:, kept], gram[kept][:, kept], {}
    for ridge in ridges:
        penalty = ridge * gram.diagonal().mean()
        regularised = kept_gram.clone()
        regularised.diagonal().add_(penalty)
        right = (target + penalty * dense[:, kept]).T  # (kept, out)
        fits[ridge] = torch.zeros_like(dense)
        fits[ridge][:, kept] = torch.cholesky_solve(right, torch.linalg.cholesky(regularised)).T
    return fits
