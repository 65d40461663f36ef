"""The method as a command: `python -m pruner_lib prune MODEL OUT --ratio 0.2`.

The eight lines of the README, with all that can be refused looked at before anything is computed. Nothing is
written until the model is pruned: then a folder that loads anywhere and, where it is wanted, a GGUF file.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import pruner_lib  # its public functions, each imported when it is used: recovery needs peft
from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, read_corpus
from pruner_lib.data.windows import instructions
from pruner_lib.method.groups import (
    AGGREGATIONS,
    CRITERIA,
    DATA_FREE,
    GRANULARITIES,
    SCOPES,
    TARGETS,
    Axes,
    Plan,
)
from pruner_lib.method.options import check_options
from pruner_lib.models.export import check_gguf
from pruner_lib.models.load import NAMES
from pruner_lib.recovery.settings import RecoverySettings

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROTECTED = (4, 2)  # layers left whole at either end, as in the README
EXAMPLES = """examples:
  python -m pruner_lib prune smollm2-135m smaller --ratio 0.2
  python -m pruner_lib prune owner/name smaller --dtype bfloat16 --recover alpaca --gguf smaller.gguf
  python -m pruner_lib prune my-folder even --uniform --calibration my-texts.txt --samples 100
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; explain it where no verb is given.

    Args:    words: of the command line; None takes those of this process.
    Returns: the exit code: 0, 2 for what is refused or fails (one sentence on stderr), 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(words)
    if options.verb is None:
        parser.print_help()
        return 0
    try:
        prune(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} {_state(options.out)}", file=sys.stderr)
        return 130
    return 0


def prune(options: argparse.Namespace) -> None:
    """Load, discover, score, choose, cut, recover where that is wanted, and save.

    Raises: ValueError: an option, the model or a text can't be used; nothing was written.
    """
    examples = _check_first(options)
    with _stage(f"loading {options.model}"):
        model, tokenizer = pruner_lib.load_model(
            options.model, dtype=DTYPES[options.dtype], device=options.device,
            trust_remote_code=options.trust_remote_code,
        )  # fmt: skip
    if options.gguf:
        check_gguf(model, tokenizer)
    with _stage("discovering groups"):
        axes = pruner_lib.discover(model)
        _check_plan(axes, options)
    with _stage(f"scoring groups by {options.criterion}"):
        scores = _scores(model, tokenizer, axes, options)
    plan, before = pruner_lib.select(axes, scores, **_plan_options(options)), model.num_parameters()
    with _stage("cutting"):
        pruner_lib.prune_(model, plan, axes=axes)
    if examples:
        with _stage(f"recovering on {len(examples)} instructions"):
            model = _recovered(model, tokenizer, examples, options)
    with _stage(f"writing {options.out}"):
        pruner_lib.save_model(model, tokenizer, options.out)
    if options.gguf:
        with _stage(f"writing {options.gguf}"):
            pruner_lib.to_gguf(model, options.gguf, tokenizer=tokenizer)
    print(_summary(plan, before, model, options))


def _check_first(options: argparse.Namespace) -> list[dict[str, str]]:
    """Refuse what can be refused without the model; give the instructions to recover with, if any.

    Raises: ValueError: a place is taken, an option out of range, or a text not found.
    """
    for place in filter(None, (options.out, options.gguf)):
        if place.exists():
            raise ValueError(f"{place} exists and is not overwritten; give another place or remove it")
    check_options(_plan_options(options) | {"ignore": (), "dependency": True})
    if options.criterion not in DATA_FREE:
        read_corpus(options.calibration)
    if options.recover == "none":
        return []
    try:
        pruner_lib.recover  # noqa: B018, imports peft
    except ImportError as error:
        raise ValueError(f"--recover needs `pip install pruner-lib[recover]`: {error}") from error
    return instructions(options.recover)


def _plan_options(options: argparse.Namespace) -> dict[str, object]:
    """What `select` is given, apart from the scores."""
    names = ("ratio", "target", "granularity", "scope", "multiple_of", "uniform")
    all_alike = options.uniform or options.granularity == "channel"
    given = zip((options.protect_first, options.protect_last), PROTECTED, strict=True)
    first, last = (default * (not all_alike) if n is None else n for n, default in given)
    return {name: getattr(options, name) for name in names} | {"protect_first": first, "protect_last": last}


def _check_plan(axes: Axes, options: argparse.Namespace) -> None:
    """Choose once by made-up scores: a plan that is impossible is so with any, and scores take long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again with the scores
        made_up = {name: torch.arange(axis.n_groups).float() for name, axis in axes.items()}
        pruner_lib.select(axes, made_up, **_plan_options(options))


def _scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axes: Axes, options: argparse.Namespace
) -> Mapping[str, Tensor]:
    ids = None
    if options.criterion not in DATA_FREE:
        ids = pruner_lib.calibration_ids(
            options.calibration, tokenizer, samples=options.samples, length=options.length, seed=options.seed
        )
    how = {"criterion": options.criterion, "aggregation": options.aggregation, "seed": options.seed or 0}
    return pruner_lib.estimate(model, axes, ids, **how)


def _recovered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[dict[str, str]],
    options: argparse.Namespace,
) -> PreTrainedModel:
    how = {"merge": True, "seed": options.seed or 0}
    if steps := options.recover_steps:
        how |= {"steps": steps, "warmup_steps": min(steps // 4, RecoverySettings.warmup_steps)}
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        return pruner_lib.recover(model, tokenizer, examples, output_dir=folder, **how).model


def _summary(plan: Plan, before: int, model: PreTrainedModel, options: argparse.Namespace) -> str:
    after, out = model.num_parameters(), str(options.out)
    trusted = ", trust_remote_code=True" if getattr(model, "pruning_layout", None) else ""
    lines = [
        f"{before:,} -> {after:,} parameters ({1 - after / before:.1%} fewer)",
        str(plan),
        f"saved to {out}; it loads with",
        f"  pruner_lib.load_model({out!r})",
        f"  transformers.AutoModelForCausalLM.from_pretrained({out!r}{trusted})",
    ]
    return "\n".join(lines + ([f"  llama-cli -m {options.gguf}"] if options.gguf else []))


def _state(place: Path) -> str:
    return "is there and whole" if place.exists() else "was not written"


@contextmanager
def _stage(what: str) -> Iterator[None]:
    """Say on stderr what begins, and how long it took."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pruner_lib",
        description="Prune a language model: remove the groups of weights that matter least.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb = parser.add_subparsers(dest="verb", metavar="prune").add_parser(
        "prune",
        help="prune a model and save it; `prune --help` lists the options",
        description="Prune a model and save it as a folder that transformers loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument(
        "model", metavar="MODEL", help=f"{', '.join(NAMES)}, a folder, or a hub id (owner/name)"
    )
    verb.add_argument("out", metavar="OUT", type=Path, help="a new folder for the pruned model")
    _add_plan(verb.add_argument_group("how much goes, and where"))
    _add_scores(verb.add_argument_group("what matters least"))
    _add_rest(verb.add_argument_group("afterwards, and the machine"))
    return parser


def _add_plan(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ratio", type=float, default=0.2, help="share that goes, in [0, 1) (default: %(default)s)")
    add("--target", choices=TARGETS, default="parameters", help="share of what (default: %(default)s)")
    add(
        "--granularity", choices=tuple(GRANULARITIES), default="block",
        help="block: heads and MLP channels; channel: hidden channels; layer: whole layers (default: block)",
    )  # fmt: skip
    add("--scope", choices=SCOPES, default="local", help="where groups are ranked (default: each layer)")
    default = "(default: %d; with --uniform or --granularity channel 0)"
    add(
        "--protect-first",
        type=int,
        metavar="N",
        help=f"layers left whole at the start {default % PROTECTED[0]}",
    )
    add(
        "--protect-last", type=int, metavar="N", help=f"layers left whole at the end {default % PROTECTED[1]}"
    )
    add("--uniform", action="store_true", help="the same widths in all layers: a plain checkpoint")
    add(
        "--multiple-of", type=_count, default=8, metavar="N",
        help="MLP widths are multiples of it, which hardware likes; 1 takes any (default: 8)",
    )  # fmt: skip


def _add_scores(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--criterion", choices=CRITERIA, default="element1", help="(default: %(default)s)")
    add("--aggregation", choices=AGGREGATIONS, default="sum", help="within a group (default: %(default)s)")
    add(
        "--calibration", default="bookcorpus", metavar="TEXT",
        help=f"{', '.join(CORPORA)}, or a .txt file, a blank line between documents (default: bookcorpus)",
    )  # fmt: skip
    add("--samples", type=_count, default=10, metavar="N", help="pieces of text (default: %(default)s)")
    add("--length", type=_count, default=64, metavar="N", help="tokens of each (default: %(default)s)")
    add(
        "--seed", type=int, metavar="N",
        help="draws the texts, the scores of random, the order of recovery (default: first texts, 0)",
    )  # fmt: skip


def _add_rest(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--recover", default="none", metavar="SET",
        help=f"train LoRA on instructions and merge it: {', '.join(INSTRUCTIONS)}, a .json or .jsonl file, "
        "or none (default); two passes over the set take hours",
    )  # fmt: skip
    add("--recover-steps", type=_count, metavar="N", help="so many steps of 64 examples instead")
    add("--gguf", type=Path, metavar="FILE", help="write a GGUF file too, for llama.cpp and ollama")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the weights (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: %(default)s)")
    add("--trust-remote-code", action="store_true", help="run code that lies beside the weights")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it finds nothing left either
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    sys.exit(main())
