"""The method as a command: `python -m pruner_lib prune MODEL OUT --ratio 0.2`.

The eight lines of the README, with all that can be refused looked at before anything is computed. Nothing is
written until the model is pruned: then a folder that loads anywhere and, where it is wanted, a GGUF file.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

import pruner_lib  # its public functions, each imported when it is used: recovery needs peft
from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, read_corpus
from pruner_lib.data.windows import instructions
from pruner_lib.files import check_folder
from pruner_lib.method.checks import require
from pruner_lib.method.names import AGGREGATIONS, CRITERIA, DATA_FREE, GRANULARITIES, SCOPES, TARGETS
from pruner_lib.method.options import check_options
from pruner_lib.models.export import check_gguf
from pruner_lib.models.load import NAMES
from pruner_lib.recovery.instructions import encode
from pruner_lib.recovery.settings import RecoverySettings

PROTECTED = (4, 2)  # layers left whole at either end, as in the README
EXAMPLES = """examples:
  python -m pruner_lib prune smollm2-135m smaller --ratio 0.2
  python -m pruner_lib prune owner/name smaller --dtype bfloat16 --recover alpaca --gguf smaller.gguf
  python -m pruner_lib prune my-folder even --uniform --calibration my-texts.txt --samples 100
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; explain it where no word follows.

    Args:    words: of the command line; None takes those of this process.
    Returns: the exit code: 0, 2 for what is refused or fails (one sentence on stderr), 130 if interrupted.
    """
    words, parser = sys.argv[1:] if words is None else words, _parser()
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    try:
        prune(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        state = "is there and whole" if options.out.exists() else "was not written"
        print(f"interrupted; {options.out} {state}", file=sys.stderr)
        return 130
    return 0


def prune(options: argparse.Namespace) -> None:
    """Load, discover, score, choose, cut, recover where that is wanted, and save.

    Raises: ValueError: an option, the model or a text can't be used; nothing was written.
    """
    examples, ids, seed = _check_first(options), None, options.seed or 0
    with _stage(f"loading {options.model}"):
        how = {"device": options.device, "trust_remote_code": options.trust_remote_code}
        model, tokenizer = pruner_lib.load_model(options.model, dtype=getattr(torch, options.dtype), **how)
    if options.gguf:
        check_gguf(model, tokenizer)
    if examples:
        encode(examples, tokenizer, cutoff=RecoverySettings.cutoff)  # refuses what can not be learned from
    if options.criterion not in DATA_FREE:
        how = {"samples": options.samples, "length": options.length, "seed": options.seed}
        ids = pruner_lib.calibration_ids(options.calibration, tokenizer, **how)
    with _stage("discovering groups"):
        axes = pruner_lib.discover(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again with the scores
        # a plan that is impossible is so with any scores, and these take long
        made_up = {name: torch.arange(axis.n_groups).float() for name, axis in axes.items()}
        pruner_lib.select(axes, made_up, **_plan_options(options))
    with _stage(f"scoring groups by {options.criterion}"):
        how = {"criterion": options.criterion, "aggregation": options.aggregation, "seed": seed}
        scores = pruner_lib.estimate(model, axes, ids, **how)
    plan, before = pruner_lib.select(axes, scores, **_plan_options(options)), model.num_parameters()
    with _stage("cutting"):
        pruner_lib.prune_(model, plan, axes=axes)
    if examples:
        how, steps = {"merge": True, "seed": seed}, options.recover_steps
        if steps:
            how |= {"steps": steps, "warmup_steps": min(steps // 4, RecoverySettings.warmup_steps)}
        with _stage(f"recovering on {len(examples)} instructions"), tempfile.TemporaryDirectory() as folder:
            model = pruner_lib.recover(model, tokenizer, examples, output_dir=folder, **how).model
    with _stage(f"writing {options.out}"):
        pruner_lib.save_model(model, tokenizer, options.out)
    if options.gguf:
        with _stage(f"writing {options.gguf}"):
            pruner_lib.to_gguf(model, options.gguf, tokenizer=tokenizer)
    print(plan, _summary(model, before, options), sep="\n")


def _check_first(options: argparse.Namespace) -> list[dict[str, str]]:
    """Refuse what can be refused without the model; give the instructions to recover with, if any.

    Raises: ValueError: a place is taken, an option out of range, or a text not found.
    """
    if options.gguf == options.out:
        raise ValueError(f"OUT and --gguf are both {options.out}; give the file another place")
    for place in filter(None, (options.out, options.gguf)):
        if os.path.lexists(place):  # a link to nothing, too
            raise ValueError(f"{place} exists and is not overwritten; give another place or remove it")
        check_folder(place)
    require("(0, 1)", ratio=options.ratio)
    require("1..", samples=options.samples)
    require("2..", length=options.length)
    require("0.. or None", seed=options.seed)
    require("[0, 4294967296) or None", seed=options.seed)  # as the Trainer takes them
    require("1.. or None", recover_steps=options.recover_steps)
    check_options(_plan_options(options) | {"ignore": (), "dependency": True})
    if options.criterion not in DATA_FREE:
        read_corpus(options.calibration)
    if options.recover == "none":
        if options.recover_steps:
            raise ValueError("--recover-steps came without --recover; say what to train on, too")
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


def _summary(model: PreTrainedModel, before: int, options: argparse.Namespace) -> str:
    after, out = model.num_parameters(), str(options.out)
    out = f"./{out}" if out in NAMES else out  # not our model of that name
    trusted = ", trust_remote_code=True" if getattr(model, "pruning_layout", None) else ""
    return (
        f"{before:,} -> {after:,} parameters ({1 - after / before:.1%} fewer)\nsaved to {out}; loads with\n"
        f"  pruner_lib.load_model({out!r})\n"
        f"  transformers.AutoModelForCausalLM.from_pretrained({out!r}{trusted})"
        + (f"\n  llama-cli -m {options.gguf}" if options.gguf else "")
    )


@contextmanager
def _stage(what: str) -> Iterator[None]:
    """Say on stderr what begins, and how long it took."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    about = "Prune a language model and save it as a folder that transformers loads."
    how = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m pruner_lib", description=about, **how)
    parser.add_argument("verb", choices=("prune",), metavar="prune")
    parser.add_argument("model", metavar="MODEL", help=f"{', '.join(NAMES)}, a folder, or a hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the pruned model")
    number, add = {"type": int, "metavar": "N"}, partial(_add, parser.add_argument_group("how much goes"))
    add("ratio", 0.2, "share that goes, in (0, 1)")
    add("target", "parameters", "share of what", choices=TARGETS)
    kinds = "block: heads and MLP channels; channel: hidden channels; layer: whole layers"
    add("granularity", "block", kinds, choices=tuple(GRANULARITIES))
    add("scope", "local", "where groups are ranked; local: in each layer", choices=SCOPES)
    for end, n in zip(("first", "last"), PROTECTED, strict=True):
        text = f"{end} layers left whole (default: {n}; with --uniform or --granularity channel 0)"
        add(f"protect-{end}", None, text, **number)
    add("uniform", False, "equal widths in all layers: a plain checkpoint")
    add("multiple-of", 8, "MLP widths are multiples of it, which hardware likes; 1 takes any", **number)
    add = partial(_add, parser.add_argument_group("what matters least"))
    add("criterion", "element1", "the score", choices=CRITERIA)
    add("aggregation", "sum", "within a group", choices=AGGREGATIONS)
    text = f"{', '.join(CORPORA)}, or a .txt file, a blank line between documents"
    add("calibration", "bookcorpus", text, metavar="TEXT")
    add("samples", 10, "pieces of text", **number)
    add("length", 64, "tokens of each", **number)
    add("seed", None, "of the texts, random scores and recovery (default: first texts, 0)", **number)
    add = partial(_add, parser.add_argument_group("afterwards, and the machine"))
    sets = f"{', '.join(INSTRUCTIONS)}, a .json or .jsonl file, or none"
    text = f"train LoRA on instructions and merge it: {sets}; two passes over the set take hours"
    add("recover", "none", text, metavar="SET")
    add("recover-steps", None, "so many steps of 64 examples instead", **number)
    add("gguf", None, "write a GGUF file too, for llama.cpp and ollama", type=Path, metavar="FILE")
    add("dtype", "float32", "of the weights", choices=("float32", "float16", "bfloat16"))
    add("device", "auto", "cpu, cuda, cuda:1 or auto")
    add("trust-remote-code", False, "run code that lies beside the weights")
    return parser


def _add(group: argparse._ArgumentGroup, name: str, default: object, text: str, **how: object) -> None:
    """Add an option that is read as its default is: a switch, a number or a text."""
    if default is False:
        how = {"action": "store_true"}
    elif default is not None:
        text, how = f"{text} (default: {default})", {"type": type(default)} | how
    group.add_argument(f"--{name}", default=default, help=text, **how)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it finds nothing left either
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    sys.exit(main())
