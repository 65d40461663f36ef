"""Scoring and removing whole decoder layers: granularity "layer" (the baselines of the paper's Table 8).

By default `select` ranks layers by the sum of their group scores, which tends to remove neighbouring layers.
Pass it the scores of the two other rules, every second layer and block influence, as `{"layers": scores}`.
"""

from collections import Counter
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Plan
from pruner_lib.method.layout import NUMBERS, empty_layout, own_config_, set_layout
from pruner_lib.method.offload import frozen, without_weights
from pruner_lib.method.options import check_ids
from pruner_lib.method.size_rules import HOLDERS, build_twin, layer_edits, other_values, shapes_of
from pruner_lib.method.trace import check_cut, error_with_cache, trace


def block_influence(model: nn.Module, calibration_ids: Tensor) -> Tensor:
    """Score each decoder layer by how much it rotates the residual stream, in one forward pass.

        I_l = 1 - mean over tokens of cos(x_l, x_(l+1)),    x_l: input of layer l, (tokens, hidden)

    Args:    calibration_ids: `(samples, tokens)` int64.
    Returns: `(n_layers,)` float32; higher means keep.
    Raises:  ValueError: the ids do not fit the model.
    Source:  Men et al., ShortGPT (2024), equation 1.
    """
    check_ids(model, calibration_ids)
    layers, scores = decoder_layers(model)[1], []

    def score(_layer: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        before = args[0] if args else kwargs["hidden_states"]  # (samples, tokens, hidden)
        after = output[0] if isinstance(output, tuple) else output
        scores.append(1 - cosine_similarity(before.float(), after.float(), dim=-1).mean())

    with ExitStack() as stack, frozen(model), torch.no_grad():
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(score, with_kwargs=True))
        model(calibration_ids.to(next(model.parameters()).device), use_cache=False)
    return torch.stack(scores).cpu()


def every_second(n_layers: int) -> Tensor:
    """Score layers so that every second one is removed first, and any number of removals is spread evenly.

    The k-th of the layers 1, 3, 5, ... scores the bit reversal of k as a fraction (0, 1/2, 1/4, 3/4, ...), so
    that the m lowest scores belong to evenly spread layers. The layers 0, 2, 4, ... score the same plus 1.

    Returns: `(n_layers,)` float32; higher means keep.
    Source:  Sanh et al., DistilBERT (2019), section 3: the student takes one layer out of two.
    """
    bits = max(1, (n_layers // 2).bit_length())
    reversals = torch.tensor([int(f"{k:0{bits}b}"[::-1], 2) / 2**bits for k in range((n_layers + 1) // 2)])
    scores = torch.empty(n_layers)
    scores[1::2], scores[0::2] = reversals[: n_layers // 2], 1 + reversals
    return scores


def separate_layers(model: nn.Module, plan: Plan) -> tuple[str, nn.ModuleList]:
    """Return the decoder layers and their path; refuse a plan of another model, and shared weights."""
    path, layers = decoder_layers(model)
    plan.check_count("layers", len(layers))
    ids = [id(p) for layer in layers for p in layer.parameters()]
    if len({*ids}) < len(ids):
        raise ValueError("layers share weights and can't be removed one by one; use granularity='block'")
    return path, layers


def drop_layers_(model: nn.Module, plan: Plan) -> nn.Module:
    """Keep some decoder layers, renumber them, and shorten the lists of the config that run over layers."""
    path, layers = separate_layers(model, plan)
    n, keep = len(layers), plan.keep["layers"].tolist()
    if getattr(model, "pruning_layout", None):
        raise ValueError("remove layers before cutting widths unevenly: the layout names layers by number")
    trial = without_weights(model)
    _keep_layers_(trial, keep, {})
    edits = layer_edits(model, shapes_of(trial), keep, n)
    new_numbers = {None: None} | {old: new for new, old in enumerate(keep)}
    factors = trace(dense := without_weights(model)).factors
    numbers = Counter((new_numbers[layer], *rest) for layer, *rest in factors if layer in new_numbers)
    trial, twin = without_weights(model), build_twin(model, edits)
    _keep_layers_(trial, keep, edits)
    # compare each kept layer with the one that the class builds at its new position
    trained = other_values(trial, twin, NUMBERS)
    others = other_values(trial, twin, (str, type(None)))
    layers, built = (m.get_submodule(path) for m in (trial, twin))
    others |= {f"{path}.{p}": found for p, found in other_values(layers, built, HOLDERS).items()}
    for module, values in others.items():
        name, value = next(iter(values.items()))
        message = f"{module}.{name} is {value!r} in a kept layer, but the class builds another value"
        raise ValueError(f"{message} for its new position; nothing was cut. Keep other layers than {keep}")
    check_cut(trial, path, plan, numbers, None, {}, {})
    if (error := error_with_cache(trial)) and not error_with_cache(dense):
        message = f"the layers {keep} of {n} alone do not run with a cache; nothing was cut"
        raise ValueError(f"{message}. Keep other layers: {error}")
    own_config_(model)
    _keep_layers_(model, keep, edits)
    set_layout(model, {**empty_layout(), "attributes": trained} if trained else None)
    model.pruned_by = [*getattr(model, "pruned_by", ()), plan]
    return model


def _keep_layers_(model: nn.Module, keep: list[int], edits: dict) -> None:
    """Keep these layers, and adapt the layer numbers, and copies of the edited lists, that modules hold."""
    path, layers = decoder_layers(model)
    values: dict[str, set[tuple[int, int]]] = {}  # attribute -> {(layer, value)}
    for i, layer in enumerate(layers):
        for name, value in ((n, v) for module in layer.modules() for n, v in vars(module).items()):
            if type(value) is int:
                values.setdefault(name, set()).add((i, value))
    numbers = [name for name, pairs in values.items() if pairs == {(i, i) for i in range(len(layers))}]
    for new, old in enumerate(keep):
        for module in layers[old].modules():
            vars(module).update(dict.fromkeys(vars(module).keys() & numbers, new))
    model.set_submodule(path, nn.ModuleList(layers[i] for i in keep))
    lists = {repr(getattr(model.config, k, None)): new for k, new in edits.items() if isinstance(new, list)}
    for module in model.modules():
        texts = {name: repr(value) for name, value in vars(module).items() if type(value) is list}
        vars(module).update({name: lists[text] for name, text in texts.items() if text in lists})
    model.config.update(edits)
