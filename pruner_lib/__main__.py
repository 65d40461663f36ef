"""The method as a command: `python -m pruner_lib prune MODEL OUT --ratio 0.2`.

Runs the eight lines of the README, with BOS before each calibration sample if the tokenizer adds it to texts.
First, every option is checked that can be checked without computing. Nothing is written until the model is
pruned; then a folder that loads anywhere is written and, with --gguf, a file.
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

import pruner_lib  # its public functions are imported on first use, since recovery needs peft
from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, read_corpus
from pruner_lib.data.windows import adds_bos
from pruner_lib.files import check_folder
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.names import AGGREGATIONS, CRITERIA, DATA_FREE, GRANULARITIES, SCOPES, TARGETS
from pruner_lib.method.options import check_options
from pruner_lib.models.export import check_gguf
from pruner_lib.models.load import NAMES
from pruner_lib.recovery.instructions import encode
from pruner_lib.recovery.settings import RecoverySettings

CALIBRATION = "bookcorpus"
PROTECTED = (4, 2)  # first and last layers that are not pruned, as in the README
EXAMPLES = """examples:
  python -m pruner_lib prune smollm2-135m smaller --ratio 0.2
  python -m pruner_lib prune owner/name smaller --dtype bfloat16 --recover alpaca --gguf smaller.gguf
  python -m pruner_lib prune my-folder even --uniform --calibration my-texts.txt --samples 100
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; without arguments, print the help.

    Args:    words: command-line arguments; None takes those of this process.
    Returns: the exit code: 0, 2 after an error (one sentence on stderr), 130 if interrupted.
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
        state = "is complete" if options.out.exists() else "was not written"
        print(f"interrupted; {options.out} {state}", file=sys.stderr)
        return 130
    return 0


def prune(options: argparse.Namespace) -> None:
    """Load a model, discover and score its groups, prune it, recover it if requested, and save it.

    Raises: ValueError: an option, the model or a text can't be used; nothing was written.
    """
    (examples, settings), ids, seed = _check_options(options), None, options.seed or 0
    with _stage(f"loading {options.model}"):
        kwargs = {"device": options.device, "trust_remote_code": options.trust_remote_code}
        model, tokenizer = pruner_lib.load_model(options.model, dtype=getattr(torch, options.dtype), **kwargs)
    n_layers, plan_options = len(decoder_layers(model)[1]), _plan_options(options)
    first, last = plan_options["protect_first"], plan_options["protect_last"]
    if first + last >= n_layers:
        found = f"--protect-first {first} and --protect-last {last} leave none of {n_layers} layers to prune"
        raise ValueError(f"{found}; lower them (defaults: {PROTECTED[0]} and {PROTECTED[1]})")
    if options.gguf:
        check_gguf(model, tokenizer)
    if examples:
        encode(examples, tokenizer, cutoff=RecoverySettings.cutoff)  # refuses unusable examples now
    if options.criterion not in DATA_FREE:
        sizes = {"samples": options.samples, "length": options.length, "seed": options.seed}
        bos = "window" if adds_bos(tokenizer) else False
        ids = pruner_lib.calibration_ids(options.calibration, tokenizer, bos=bos, **sizes)
    with _stage("discovering groups"):
        axes = pruner_lib.discover(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the real selection below repeats them
        # a plan that is impossible for any scores is refused before the slow scoring
        placeholder = {name: torch.arange(axis.n_groups).float() for name, axis in axes.items()}
        pruner_lib.select(axes, placeholder, **plan_options)
    with _stage(f"scoring groups by {options.criterion}"):
        scoring = {"criterion": options.criterion, "aggregation": options.aggregation, "seed": seed}
        scores = pruner_lib.estimate(model, axes, ids, **scoring)
    plan, before = pruner_lib.select(axes, scores, **plan_options), model.num_parameters()
    with _stage("pruning"):
        pruner_lib.prune_(model, plan, axes=axes)
    if examples:
        with _stage(f"recovering on {len(examples)} instructions"), tempfile.TemporaryDirectory() as folder:
            settings |= {"output_dir": folder, "merge": True}
            model = pruner_lib.recover(model, tokenizer, examples, **settings).model
    with _stage(f"writing {options.out}"):
        pruner_lib.save_model(model, tokenizer, options.out)
    if options.gguf:
        with _stage(f"writing {options.gguf}"):
            pruner_lib.to_gguf(model, options.gguf, tokenizer=tokenizer)
    print(plan, _summary(model, before, options), sep="\n")


def _check_options(options: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, object]]:
    """Check every option that can be checked without the model.

    Returns: the instructions for recovery, if any, and the settings that differ from its defaults.
    Raises: ValueError: an output path exists, an option is out of range, or a text is not found.
    """
    if options.gguf == options.out:
        raise ValueError(f"OUT and --gguf are both {options.out}; give the file another path")
    for path in filter(None, (options.out, options.gguf)):
        if os.path.lexists(path):  # also true for a dangling link
            raise ValueError(f"{path} exists and is not overwritten; give another path or remove it")
        check_folder(path)
    require("(0, 1)", ratio=options.ratio)
    require("1..", samples=options.samples)
    require("2..", length=options.length)
    require("0.. or None", seed=options.seed)
    require("1.. or None", recover_steps=options.recover_steps)
    check_options(_plan_options(options) | {"ignore": (), "dependency": True})
    if options.criterion not in DATA_FREE or options.calibration != CALIBRATION:  # may be misspelt
        read_corpus(options.calibration)
    if options.recover == "none":
        if options.recover_steps:
            raise ValueError("--recover-steps was given without --recover; also name a set to train on")
        return [], {}
    settings = {"seed": options.seed or 0}
    if steps := options.recover_steps:
        settings |= {"steps": steps, "warmup_steps": min(steps // 4, RecoverySettings.warmup_steps)}
    RecoverySettings(**settings)
    try:
        pruner_lib.recover  # noqa: B018, imports peft
    except ImportError as error:
        raise ValueError(f"--recover needs `pip install pruner-lib[recover]`: {error}") from error
    return pruner_lib.instructions(options.recover), settings


def _plan_options(options: argparse.Namespace) -> dict[str, object]:
    """Collect the arguments of `select`, apart from the scores."""
    names = ("ratio", "target", "granularity", "scope", "multiple_of", "uniform")
    prunes_all_layers = options.uniform or options.granularity == "channel"
    pairs = zip((options.protect_first, options.protect_last), PROTECTED, strict=True)
    first, last = (default * (not prunes_all_layers) if n is None else n for n, default in pairs)
    return {name: getattr(options, name) for name in names} | {"protect_first": first, "protect_last": last}


def _summary(model: PreTrainedModel, before: int, options: argparse.Namespace) -> str:
    after, out = model.num_parameters(), str(options.out)
    out = f"./{out}" if out in NAMES else out  # so that load_model takes the folder, not the known name
    trusted = ", trust_remote_code=True" if getattr(model, "pruning_layout", None) else ""
    return (
        f"{before:,} -> {after:,} parameters ({1 - after / before:.1%} fewer)\nsaved to {out}; loads with\n"
        f"  pruner_lib.load_model({out!r})\n"
        f"  transformers.AutoModelForCausalLM.from_pretrained({out!r}{trusted})"
        + (f"\n  llama-cli -m {options.gguf}" if options.gguf else "")
    )


@contextmanager
def _stage(description: str) -> Iterator[None]:
    """Print on stderr what starts, and how long it took."""
    print(f"{description} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    about = "Prune a language model and save it as a folder that transformers loads."
    layout = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m pruner_lib", description=about, **layout)
    parser.add_argument("verb", choices=("prune",), metavar="prune")
    parser.add_argument("model", metavar="MODEL", help=f"{', '.join(NAMES)}, a folder, or a hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the pruned model")
    number, add = {"type": int, "metavar": "N"}, partial(_add, parser.add_argument_group("how much to prune"))
    add("ratio", 0.2, "share to remove, in (0, 1)")
    add("target", "parameters", "what the ratio is a share of", choices=TARGETS)
    kinds = "block: heads and MLP channels; channel: hidden channels; layer: whole layers"
    add("granularity", "block", kinds, choices=tuple(GRANULARITIES))
    add("scope", "local", "where groups are ranked; local: within each layer", choices=SCOPES)
    for end, n in zip(("first", "last"), PROTECTED, strict=True):
        text = f"{end} N layers are not pruned (default: {n}; with --uniform or --granularity channel 0)"
        add(f"protect-{end}", None, text, **number)
    add("uniform", False, "same widths in all layers, which gives a plain checkpoint")
    add("multiple-of", 8, "round MLP widths to multiples of N, which are faster; 1: any width", **number)
    add = partial(_add, parser.add_argument_group("how groups are scored"))
    add("criterion", "element1", "the score of a group", choices=CRITERIA)
    add("aggregation", "sum", "how the scores within a group are combined", choices=AGGREGATIONS)
    text = f"{', '.join(CORPORA)}, or a .txt file with blank lines between documents"
    text += f"; samples begin with BOS if the tokenizer adds it; {', '.join(DATA_FREE)} read no text"
    add("calibration", CALIBRATION, text, metavar="TEXT")
    add("samples", 10, "calibration samples", **number)
    add("length", 64, "tokens per sample", **number)
    add("seed", None, "random seed (default: the first samples, 0 for random scores and recovery)", **number)
    add = partial(_add, parser.add_argument_group("recovery, output and device"))
    sets = f"{', '.join(INSTRUCTIONS)}, a .json or .jsonl file, or none"
    text = f"train LoRA on instructions and merge it: {sets}; two epochs take hours"
    add("recover", "none", text, metavar="SET")
    add("recover-steps", None, "train N steps of 64 examples instead of two epochs", **number)
    add("gguf", None, "also write a GGUF file, for llama.cpp and ollama", type=Path, metavar="FILE")
    add("dtype", "float32", "dtype of the weights", choices=("float32", "float16", "bfloat16"))
    add("device", "auto", "cpu, cuda, cuda:1 or auto")
    add("trust-remote-code", False, "run code that comes with the checkpoint")
    return parser


def _add(group: argparse._ArgumentGroup, name: str, default: object, text: str, **options: object) -> None:
    """Add an option whose type is that of its default: a switch, a number or a text."""
    if default is False:
        options = {"action": "store_true"}
    elif default is not None:
        text, options = f"{text} (default: {default})", {"type": type(default)} | options
    group.add_argument(f"--{name}", default=default, help=text, **options)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped command cleans up, too
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    sys.exit(main())
