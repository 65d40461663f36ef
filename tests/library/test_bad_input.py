"""What is wrong gets one sentence, before a model runs and before a file is written.

Each row of the table changes one good call; the sentence names what came and what is wanted. A good call of
each function stands beside the wrong ones. `tests/study/test_bad_settings.py` does the same for the study.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import sys
import warnings
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from pruner_lib import (
    Plan,
    calibration_ids,
    discover,
    estimate,
    generate_samples,
    load_model,
    mask_,
    perplexity,
    prune_,
    recover,
    repair_,
    save_model,
    select,
    text_ids,
    to_gguf,
    zero_shot,
)
from pruner_lib.data.windows import instructions
from pruner_lib.evaluation.efficiency import latency, macs
from pruner_lib.evaluation.int8 import quantise_

MODEL, TOKENIZER = load_model("tiny")
AXES = discover(MODEL)
IDS = calibration_ids("tiny", TOKENIZER, samples=4, length=16)
SCORES = estimate(MODEL, AXES, criterion="l1")
PLAN = select(AXES, SCORES, ratio=0.5)
SMALLER = prune_(copy.deepcopy(MODEL), PLAN)
EXAMPLES = instructions("tiny", samples=2)
HEADS = next(name for name in AXES if AXES[name].kind == "attention")
OTHER_PLAN = Plan({"layers.9.mlp": [0]}, {"layers.9.mlp": 2})


def edited(keep=(), n_groups=(), **other) -> str:
    """The plan as text in which somebody changed something."""
    plan = PLAN.to_dict()
    return json.dumps(
        plan | {"keep": plan["keep"] | dict(keep), "n_groups": plan["n_groups"] | dict(n_groups)} | other
    )


NAN = SCORES | {HEADS: SCORES[HEADS] * float("nan")}
RECOVERY = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "warmup_steps": 0}
SIZES = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
CLASSIFIER = LlamaForSequenceClassification(LlamaConfig(vocab_size=260, **SIZES))
ON_META = copy.deepcopy(MODEL).to("meta")
FEW_TOKENS = LlamaForCausalLM(LlamaConfig(vocab_size=9, **SIZES))
SHORT_GPT2 = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=8, n_layer=1, n_head=2, n_positions=8))
INF, SHORT = float("inf"), {HEADS: torch.ones(1)}
NO_NUMBERS = copy.deepcopy(MODEL)
NO_NUMBERS.model.layers[0].mlp.up_proj.weight.data[:] = float("nan")
HALF_A_CHARACTER = "a river \ud800 a tree " * 20
LONG = "n" * 300  # longer than the name of a file can be

GOOD = {  # a call of each function, with all that is right
    load_model: {"name_or_path": "tiny"},
    discover: {"model": MODEL},
    estimate: {"model": MODEL, "axes": AXES, "calibration_ids": IDS},
    select: {"axes": AXES, "scores": SCORES, "ratio": 0.5},
    prune_: {"model": MODEL, "plan": PLAN, "axes": AXES},
    mask_: {"model": MODEL, "plan": PLAN, "axes": AXES},
    repair_: {"model": MODEL, "plan": PLAN, "calibration_ids": IDS, "axes": AXES},
    save_model: {"model": MODEL, "tokenizer": TOKENIZER, "path": "new"},
    to_gguf: {"model": MODEL, "path": "new.gguf", "tokenizer": TOKENIZER},
    perplexity: {"model": MODEL, "ids": IDS},
    generate_samples: {"model": MODEL, "tokenizer": TOKENIZER, "prompts": ["a river"], "max_new_tokens": 2},
    zero_shot: {"model": MODEL, "tokenizer": TOKENIZER, "tasks": ["boolq"], "limit": 1},
    text_ids: {"text": "tiny", "tokenizer": TOKENIZER, "length": 8, "windows": 2},
    calibration_ids: {"text": "tiny", "tokenizer": TOKENIZER, "samples": 2, "length": 8},
    instructions: {"name": "tiny", "samples": 2},
    recover: {"model": MODEL, "tokenizer": TOKENIZER, "examples": EXAMPLES, "output_dir": "run"} | RECOVERY,
    macs: {"model": MODEL, "tokens": 4},
    latency: {"model": MODEL, "tokens": 4, "repeats": 1},
    quantise_: {"model": MODEL, "outlier": 6},
    Plan.from_json: {"source": PLAN.to_json()},
    Plan: {"keep": {"a": [0]}, "n_groups": {"a": 2}},
    PLAN.to_json: {"path": "plan.json"},
}

CASES = [  # function, what is wrong, what came, what is wanted
    (load_model, {"name_or_path": "smollm"}, "'smollm'", "smollm2-135m"),
    (load_model, {"name_or_path": ""}, "''", "smollm2-135m"),
    (load_model, {"name_or_path": 5}, "5", "smollm2-135m"),
    (load_model, {"name_or_path": Path("nowhere")}, "'nowhere'", "folder"),
    (load_model, {"name_or_path": "a/b/c"}, "'a/b/c'", "owner/name"),
    (load_model, {"name_or_path": "<b>"}, "'<b>'", "owner/name"),
    (load_model, {"dtype": "float32"}, "'float32'", "torch.float32"),
    (load_model, {"dtype": torch.int8}, "torch.int8", "torch.float32"),
    (load_model, {"dtype": None}, "None", "torch.float32"),
    (load_model, {"device": "tpu7"}, "'tpu7'", "auto, cpu"),
    (load_model, {"device": 3.5}, "3.5", "auto, cpu"),
    (load_model, {"device": "mps"}, "'mps'", "auto, cpu"),
    (load_model, {"device": None}, "None", "auto, cpu"),
    (load_model, {"device_map": "auto"}, "device_map", "leave it out"),
    (load_model, {"trust_remote_code": "no"}, "'no'", "True or False"),
    (load_model, {"seed": "x"}, "'x'", "a whole number of at least 0"),
    (load_model, {"seed": -1}, "-1", "a whole number of at least 0"),
    (load_model, {"seed": 1.5}, "1.5", "a whole number of at least 0"),
    (load_model, {"name_or_path": LONG}, "nnn'", "known name"),
    (load_model, {"seed": 2**63}, "9223372036854775808, which is too large", "a whole number of at least 0"),
    (load_model, {"dtype": np.float32}, "numpy.float32", "torch.float32"),
    (discover, {"query_heads": "no"}, "'no'", "True or False"),
    (discover, {"query_heads": None}, "None", "True or False"),
    (discover, {"model": None}, "None", "a model"),
    (discover, {"model": "tiny"}, "str", "load_model"),
    (discover, {"model": MODEL.config}, "LlamaConfig", "load_model"),
    (discover, {"model": type(MODEL)}, "type", "load_model"),
    (discover, {"model": nn.Linear(2, 2)}, "Linear", "decoder"),
    (discover, {"model": nn.Sequential()}, "Sequential", "decoder"),
    (discover, {"model": BertModel(BertConfig(vocab_size=16, hidden_size=12))}, "BertModel", "decoder"),
    (discover, {"model": AXES}, "Axes", "load_model"),
    (estimate, {"model": None}, "None", "load_model"),
    (estimate, {"axes": None}, "None", "discover"),
    (estimate, {"axes": {}}, "axes are empty", "discover"),
    (estimate, {"axes": ["mlp"]}, "['mlp']", "discover"),
    (estimate, {"axes": {"mlp": "mlp"}}, "'mlp'", "discover"),
    (estimate, {"model": SMALLER}, "64320", "run discover again"),
    (estimate, {"calibration_ids": None}, "NoneType", "int64 of shape"),
    (estimate, {"calibration_ids": IDS.tolist()}, "list", "int64 of shape"),
    (estimate, {"calibration_ids": IDS.float()}, "torch.float32", "int64"),
    (estimate, {"calibration_ids": IDS[0]}, "(16,)", "(samples, tokens)"),
    (estimate, {"calibration_ids": IDS[:, :1]}, "(4, 1)", "at least 2 tokens"),
    (estimate, {"calibration_ids": IDS[:0]}, "(0, 16)", "(samples, tokens)"),
    (estimate, {"calibration_ids": IDS - 999}, "from -", "has 260 tokens"),
    (estimate, {"calibration_ids": IDS + 999}, "to 1", "has 260 tokens"),
    (estimate, {"calibration_ids": IDS.numpy()}, "ndarray", "int64"),
    (estimate, {"calibration_ids": IDS.to("meta")}, "on meta", "int64 of shape"),
    (estimate, {"calibration_ids": IDS.to_sparse()}, "torch.sparse_coo on cpu", "int64 of shape"),
    (estimate, {"model": CLASSIFIER, "axes": discover(CLASSIFIER)}, "LlamaForSequence", "predicts tokens"),
    (perplexity, {"model": CLASSIFIER}, "LlamaForSequenceClassification", "a decoder that predicts tokens"),
    (zero_shot, {"model": CLASSIFIER}, "LlamaForSequenceClassification", "a decoder that predicts tokens"),
    (generate_samples, {"model": CLASSIFIER}, "LlamaForSequenceClass", "a decoder that predicts tokens"),
    (perplexity, {"model": SHORT_GPT2}, "16 tokens", "8 positions"),
    (generate_samples, {"model": SHORT_GPT2, "max_new_tokens": 8}, "too long", "8 positions"),
    (recover, {"model": SHORT_GPT2}, "too long", "8 positions"),
    (generate_samples, {"model": FEW_TOKENS}, "has 9 tokens", "resize_token_embeddings"),
    (recover, {"model": FEW_TOKENS}, "has 9 tokens", "resize_token_embeddings"),
    (zero_shot, {"model": FEW_TOKENS}, "has 9 tokens", "resize_token_embeddings"),
    (estimate, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (perplexity, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (repair_, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (generate_samples, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (zero_shot, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (recover, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (estimate, {"model": ON_META, "criterion": "l1"}, "on the meta device", "load it with its weights"),
    (save_model, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (to_gguf, {"model": ON_META}, "on the meta device", "load it with its weights"),
    (latency, {"model": ON_META}, "on the meta", "load it with its weights"),
    (perplexity, {"model": nn.Linear(2, 2)}, "Linear", "a decoder that predicts tokens"),
    (generate_samples, {"model": nn.Linear(2, 2)}, "Linear", "a decoder that predicts tokens"),
    (recover, {"model": nn.Linear(2, 2)}, "Linear", "a decoder that predicts tokens"),
    (estimate, {"criterion": np.array(["l1"])}, "array(['l1']", "element1"),
    (estimate, {"aggregation": np.array(["sum"])}, "array(['sum']", "mean"),
    (
        estimate,
        {"criterion": "random", "seed": 2**64},
        "18446744073709551616",
        "a whole number of at least 0",
    ),
    (estimate, {"criterion": "taylor"}, "'taylor'", "element1"),
    (estimate, {"criterion": None}, "None", "element1"),
    (estimate, {"criterion": 5}, "5", "element1"),
    (estimate, {"criterion": ["l1"]}, "['l1']", "element1"),
    (estimate, {"aggregation": "average"}, "'average'", "mean"),
    (estimate, {"aggregation": None}, "None", "mean"),
    (estimate, {"order": "rows"}, "'rows'", "channel, group"),
    (estimate, {"criterion": "obs", "aggregation": "max"}, "'max'", "leave it out"),
    (estimate, {"seed": "x"}, "'x'", "a whole number"),
    (estimate, {"criterion": "random", "seed": -1}, "-1", "at least 0"),
    (estimate, {"criterion": "random", "seed": 1.5}, "1.5", "a whole number"),
    (estimate, {"criterion": "random", "seed": None}, "None", "a whole number"),
    (estimate, {"micro_batch": 0}, "0", "at least 1, or None"),
    (estimate, {"micro_batch": 1.5}, "1.5", "at least 1, or None"),
    (estimate, {"micro_batch": "2"}, "'2'", "at least 1, or None"),
    (estimate, {"micro_batch": True}, "True", "at least 1, or None"),
    (select, {"axes": None}, "None", "discover"),
    (select, {"axes": {}}, "axes are empty", "discover"),
    (select, {"axes": ["mlp"]}, "['mlp']", "discover"),
    (select, {"axes": SCORES, "scores": AXES}, "Tensor", "discover"),
    (select, {"scores": None}, "None", "estimate"),
    (select, {"scores": {}}, "no scores", "estimate"),
    (select, {"scores": SHORT}, "(1,)", "(2,)"),
    (select, {"scores": NAN}, "not all finite", "check the calibration loss"),
    (select, {"scores": SCORES | {HEADS: "high"}}, "'high'", "a tensor"),
    (select, {"scores": SCORES | {HEADS: SCORES[HEADS].to("meta")}}, "device='meta'", "a tensor"),
    (select, {"ratio": 1}, "1", "a number in [0, 1)"),
    (select, {"ratio": 20}, "20", "a number in [0, 1)"),
    (select, {"ratio": -0.1}, "-0.1", "a number in [0, 1)"),
    (select, {"ratio": INF}, "inf", "a number in [0, 1)"),
    (select, {"ratio": INF - INF}, "nan", "a number in [0, 1)"),
    (select, {"ratio": "0.2"}, "'0.2'", "a number in [0, 1)"),
    (select, {"ratio": None}, "None", "a number in [0, 1)"),
    (select, {"ratio": True}, "True", "a number in [0, 1)"),
    (select, {"ratio": [0.2]}, "[0.2]", "a number in [0, 1)"),
    (select, {"ratio": np.array([0.2, 0.3])}, "ndarray", "a number in [0, 1)"),
    (select, {"ratio": torch.tensor(1.5)}, "1.5", "a number in [0, 1)"),
    (select, {"ratio": torch.tensor(0.5, device="meta")}, "Tensor", "a number in [0, 1)"),
    (select, {"scope": np.array(["local"])}, "array(['local']", "global"),
    (select, {"ratio": {}}, "{}", "names or patterns of axes"),
    (select, {"ratio": {"nope": 0.2}}, "'nope'", HEADS),
    (select, {"ratio": {5: 0.2}}, "5", HEADS),
    (select, {"ratio": {"*": 2}}, "2", "a number in [0, 1)"),
    (select, {"ratio": {"*": 0.2}, "scope": "global"}, "ratios by axis", "scope='local'"),
    (select, {"granularity": "head"}, "'head'", "block"),
    (select, {"granularity": None}, "None", "block"),
    (select, {"scope": "layer"}, "'layer'", "local"),
    (select, {"target": "weights"}, "'weights'", "parameters"),
    (select, {"protect_first": -1}, "-1", "at least 0"),
    (select, {"protect_first": 1.0}, "1.0", "a whole number"),
    (select, {"protect_last": "1"}, "'1'", "a whole number"),
    (select, {"protect_last": True}, "True", "a whole number"),
    (select, {"protect_first": 1, "protect_last": 1}, "2", "2 layers"),
    (select, {"granularity": "channel", "protect_last": 1}, "protect_last", "must be 0"),
    (select, {"ignore": "layers.0.mlp"}, "'layers.0.mlp'", "a list"),
    (select, {"ignore": ["nope"]}, "'nope'", HEADS),
    (select, {"ignore": [3]}, "3", HEADS),
    (select, {"ignore": None}, "None", "a list"),
    (select, {"multiple_of": 0}, "0", "at least 1"),
    (select, {"multiple_of": 2.5}, "2.5", "a whole number"),
    (select, {"uniform": True, "protect_first": 1}, "uniform=True", "no protected"),
    (select, {"granularity": "layer", "dependency": False}, "'layer'", "dependency=True"),
    (select, {"dependency": False, "scope": "global"}, "'global'", "scope='local'"),
    (select, {"dependency": False}, "(2,)", "aggregation='none'"),
    (select, {"target": "parameters", "ratio": 0.9}, "90.0%", "lower the ratio"),
    (prune_, {"model": None}, "None", "load_model"),
    (prune_, {"plan": None}, "None", "select"),
    (prune_, {"plan": PLAN.to_dict()}, "{", "select"),
    (prune_, {"plan": OTHER_PLAN}, "layers.9", HEADS),
    (prune_, {"model": SMALLER, "axes": None}, "groups", "make a plan for this model"),
    (prune_, {"model": SMALLER}, "parameters", "leave `axes` out"),
    (prune_, {"axes": dict(AXES)}, "{", "discover"),
    (mask_, {"model": "tiny"}, "str", "load_model"),
    (mask_, {"plan": "all"}, "'all'", "select"),
    (mask_, {"plan": OTHER_PLAN}, "layers.9", HEADS),
    (mask_, {"axes": {}}, "{}", "discover"),
    (repair_, {"model": None}, "None", "load_model"),
    (repair_, {"plan": None}, "None", "select"),
    (repair_, {"calibration_ids": None}, "NoneType", "int64"),
    (repair_, {"calibration_ids": IDS[:1]}, "1", "at least 2"),
    (repair_, {"ridges": [0.1, 1, 0.1]}, "[0.1, 1, 0.1]", "an entry twice"),
    (repair_, {"ridges": []}, "[]", "(0, inf)"),
    (repair_, {"ridges": [0.1, -1]}, "-1", "(0, inf)"),
    (repair_, {"ridges": ["x"]}, "'x'", "(0, inf)"),
    (repair_, {"ridges": 0.1}, "0.1", "(0, inf)"),
    (save_model, {"model": None}, "None", "load_model"),
    (save_model, {"model": nn.Linear(2, 2)}, "Linear", "transformers"),
    (save_model, {"path": None}, "None", "a folder"),
    (save_model, {"path": "taken.txt"}, "taken.txt", "a folder"),
    (save_model, {"path": "full"}, "full", "a new folder"),
    (save_model, {"path": "dangling"}, "dangling is a link", "a folder"),
    (save_model, {"path": LONG}, "too long", "another folder"),
    (save_model, {"path": "new\ud800"}, "\\ud800", "another folder"),
    (save_model, {"path": "new\0"}, "null byte", "another folder"),
    (save_model, {"max_shard_size": "0GB"}, "0GB", "5GB"),
    (save_model, {"tokenizer": len}, "builtin_function", "a tokenizer of transformers"),
    (save_model, {"tokenizer": MODEL}, "LlamaForCausalLM", "a tokenizer of transformers"),
    (save_model, {"tokenizer": [TOKENIZER]}, "[TokenizersBac", "a tokenizer of transformers"),
    (save_model, {"path": "taken.txt/in"}, "taken.txt", "a folder"),
    (save_model, {"max_shard_size": "5 apples"}, "5 apples", "5GB"),
    (save_model, {"max_shard_size": 0}, "0", "5GB"),
    (save_model, {"max_shard_size": None}, "None", "5GB"),
    (save_model, {"tokenizer": "tiny"}, "'tiny'", "tokenizer"),
    (to_gguf, {"path": None}, "None", "a string or a Path"),
    (to_gguf, {"model": None}, "None", "load_model"),
    (to_gguf, {"tokenizer": None}, "tokenizer", "to_gguf(model, path, tokenizer"),
    (to_gguf, {"path": "full"}, "full", "a file"),
    (to_gguf, {"dtype": torch.int8}, "torch.int8", "torch.float32"),
    (to_gguf, {"dtype": "float16"}, "float16", "torch.float32"),
    (to_gguf, {"dtype": [torch.float16]}, "[torch.float16]", "torch.float32"),
    (to_gguf, {"path": "taken.txt/m.gguf"}, "taken.txt", "a folder"),
    (perplexity, {"model": None}, "None", "load_model"),
    (perplexity, {"ids": None}, "NoneType", "int64"),
    (perplexity, {"ids": "text"}, "str", "int64"),
    (perplexity, {"ids": IDS + 999}, "to 1", "has 260 tokens"),
    (perplexity, {"batch_size": 0}, "0", "at least 1"),
    (perplexity, {"batch_size": -1}, "-1", "at least 1"),
    (perplexity, {"batch_size": 1.5}, "1.5", "a whole number"),
    (perplexity, {"batch_size": "8"}, "'8'", "a whole number"),
    (generate_samples, {"model": None}, "None", "load_model"),
    (generate_samples, {"tokenizer": None}, "None", "tokenizer"),
    (generate_samples, {"tokenizer": MODEL}, "LlamaForCausalLM", "a tokenizer of transformers"),
    (generate_samples, {"prompts": [HALF_A_CHARACTER]}, "which has an unpaired surrogate", "a text"),
    (generate_samples, {"do_sample": "no"}, "'no'", "True or False"),
    (generate_samples, {"top_p": 2}, "2", "a number in (0, 1]"),
    (generate_samples, {"top_p": "x"}, "'x'", "a number in (0, 1]"),
    (generate_samples, {"num_beams": 0}, "'num_beams': 0", "check these arguments"),
    (generate_samples, {"num_beams": "x"}, "'num_beams': 'x'", "check these arguments"),
    (generate_samples, {"nope": 1}, "'nope'", "check these arguments"),
    (generate_samples, {"input_ids": IDS}, "'input_ids'", "check these arguments"),
    (generate_samples, {"streamer": 5}, "'streamer': 5", "check these arguments"),
    (generate_samples, {"generation_config": 5}, "'generation_config': 5", "check these arguments"),
    (generate_samples, {"prompts": "a river"}, "'a river'", "a list"),
    (generate_samples, {"prompts": []}, "[]", "a list"),
    (generate_samples, {"prompts": [5]}, "5", "a text"),
    (generate_samples, {"prompts": [""]}, "['']", "none of them may be empty"),
    (generate_samples, {"prompts": None}, "None", "a list"),
    (generate_samples, {"max_new_tokens": 0}, "0", "at least 1"),
    (generate_samples, {"max_new_tokens": 1.5}, "1.5", "a whole number"),
    (generate_samples, {"draws": 0}, "0", "at least 1"),
    (generate_samples, {"draws": "2"}, "'2'", "a whole number"),
    (generate_samples, {"seed": -1}, "-1", "at least 0"),
    (generate_samples, {"seed": None}, "None", "a whole number"),
    (zero_shot, {"model": None}, "None", "load_model"),
    (zero_shot, {"tasks": []}, "[]", "a list"),
    (zero_shot, {"tasks": None}, "None", "a list"),
    (zero_shot, {"limit": 0}, "0", "at least 1"),
    (zero_shot, {"limit": 1.5}, "1.5", "at least 1"),
    (zero_shot, {"limit": "3"}, "'3'", "at least 1"),
    (zero_shot, {"seed": -1}, "-1", "at least 0"),
    (zero_shot, {"seed": "x"}, "'x'", "a whole number"),
    (zero_shot, {"batch_size": 0}, "0", "at least 1"),
    (zero_shot, {"batch_size": "auto"}, "'auto'", "a whole number"),
    (zero_shot, {"tokenizer": None}, "None", "tokenizer"),
    (zero_shot, {"tokenizer": MODEL}, "LlamaForCausalLM", "a tokenizer of transformers"),
    (zero_shot, {"add_bos": 1}, "1", "True, False, None"),
    (zero_shot, {"add_bos": 0.0}, "0.0", "True, False, None"),
    (text_ids, {"text": "wikki"}, "'wikki'", "wiki"),
    (text_ids, {"text": Path("none.txt")}, "none.txt", "wiki"),
    (text_ids, {"text": 5}, "5", "documents"),
    (text_ids, {"text": None}, "None", "documents"),
    (text_ids, {"text": []}, "0 documents", "at least one"),
    (text_ids, {"text": ["", " "]}, "2 documents", "at least one"),
    (text_ids, {"text": [1, 2]}, "int", "a str"),
    (text_ids, {"text": pd.DataFrame({"body": ["a river"]})}, "DataFrame of ['body']", "give one of them"),
    (text_ids, {"text": np.array([["a river"]])}, "ndarray", "give one of them"),
    (text_ids, {"text": repeat("a river", 1), "length": 99}, "has 0 windows", "expected 2 windows"),
    (text_ids, {"text": "a river " * 600}, "'a river", "as a list, [text]"),
    (text_ids, {"text": "a river\n\na tree"}, "a tree", "as a list, [text]"),
    (text_ids, {"text": "full/rows.json"}, "rows.json", "a list of its texts"),
    (text_ids, {"text": "full/cut.gz"}, "cut.gz", "download it again"),
    (text_ids, {"text": "full/other.gz"}, "other.gz", "download it again"),
    (text_ids, {"text": "full/latin.txt"}, "latin.txt", "UTF-8"),
    (text_ids, {"text": IDS}, "Tensor of ['tensor(", "give one of them"),
    (text_ids, {"text": [HALF_A_CHARACTER]}, "which has an unpaired surrogate", "a text"),
    (calibration_ids, {"text": [HALF_A_CHARACTER] * 2}, "which has an unpaired surrogate", "document 0"),
    (text_ids, {"bos": 1}, "1", "True, False, window"),
    (text_ids, {"bos": np.array([True, False])}, "array([ True", "True, False, window"),
    (calibration_ids, {"bos": 0}, "0", "True, False, window"),
    (text_ids, {"tokenizer": MODEL}, "LlamaForCausalLM", "a tokenizer of transformers"),
    (calibration_ids, {"tokenizer": str}, "type", "a tokenizer of transformers"),
    (text_ids, {"seed": 2**200}, "which is too large", "a whole number"),
    (text_ids, {"tokenizer": None}, "None", "tokenizer"),
    (text_ids, {"length": 0}, "0", "at least 1"),
    (text_ids, {"length": "8"}, "'8'", "a whole number"),
    (text_ids, {"length": 2.5}, "2.5", "a whole number"),
    (text_ids, {"length": None}, "None", "a whole number"),
    (text_ids, {"windows": 0}, "0", "at least 1"),
    (text_ids, {"windows": 10**7}, "windows", "expected 10000000"),
    (text_ids, {"windows": "all"}, "'all'", "a whole number"),
    (text_ids, {"seed": -1}, "-1", "at least 0"),
    (text_ids, {"seed": "x"}, "'x'", "a whole number"),
    (text_ids, {"seed": 0.5}, "0.5", "a whole number"),
    (text_ids, {"separator": 3}, "3", "separator"),
    (text_ids, {"separator": ""}, "''", "separator"),
    (calibration_ids, {"text": "wikki"}, "'wikki'", "wiki"),
    (calibration_ids, {"samples": 0}, "0", "at least 1"),
    (calibration_ids, {"samples": None}, "None", "a whole number"),
    (calibration_ids, {"samples": 1000}, "200 documents", "1000"),
    (calibration_ids, {"samples": True}, "True", "a whole number"),
    (calibration_ids, {"length": -3}, "-3", "at least 1"),
    (calibration_ids, {"length": 10**6}, "0 documents", "shorter"),
    (calibration_ids, {"seed": "x"}, "'x'", "a whole number"),
    (calibration_ids, {"seed": -1}, "-1", "at least 0"),
    (instructions, {"name": "alpacca"}, "'alpacca'", "alpaca"),
    (instructions, {"name": 5}, "5", "alpaca"),
    (instructions, {"name": EXAMPLES}, "'instruction'", "alpaca"),
    (instructions, {"name": Path("full/rows.json")}, "rows.json", "instruction"),
    (instructions, {"name": "full/none.json", "samples": None}, "none.json", "expected a JSON list"),
    (instructions, {"samples": 0}, "0", "at least 1"),
    (instructions, {"samples": 10**6}, "1000000", "take fewer"),
    (instructions, {"samples": 2.5}, "2.5", "a whole number"),
    (instructions, {"seed": -1}, "-1", "at least 0"),
    (recover, {"model": None}, "None", "load_model"),
    (recover, {"tokenizer": None}, "None", "tokenizer"),
    (recover, {"examples": [{"text": HALF_A_CHARACTER}]}, "which has an unpaired surrogate", "a text"),
    (recover, {"tokenizer": str}, "type", "a tokenizer of transformers"),
    (recover, {"output_dir": "dangling"}, "dangling is a link", "a folder"),
    (recover, {"output_dir": LONG}, "too long", "another folder"),
    (recover, {"callbacks": 5}, "5", "a list, each entry a TrainerCallback"),
    (recover, {"callbacks": None}, "None", "a list, each entry a TrainerCallback"),
    (recover, {"callbacks": [print]}, "builtin_function", "a TrainerCallback"),
    (recover, {"keep_at": [1, 1]}, "[1, 1]", "an entry twice"),
    (recover, {"examples": []}, "0 examples", "instruction"),
    (recover, {"examples": [{}]}, "Example 0", "instruction"),
    (recover, {"examples": [{"instruction": 5, "output": "a"}]}, "instruction", "output"),
    (recover, {"examples": "text"}, "str", "dicts"),
    (recover, {"examples": [5]}, "[5]", "dicts"),
    (recover, {"examples": None}, "None", "dicts"),
    (recover, {"output_dir": "taken.txt"}, "taken.txt", "a folder"),
    (recover, {"output_dir": None}, "None", "a folder"),
    (recover, {"evaluate": 5}, "5", "a function"),
    (recover, {"evaluate_at": [1]}, "[1]", "evaluate=None"),
    (recover, {"keep_at": [9]}, "[9]", "from 1 to 1"),
    (recover, {"keep_at": ["x"]}, "'x'", "a whole number"),
    (recover, {"keep_at": 1}, "1", "a list"),
    (recover, {"at": 3}, "3", "keep_at"),
    (recover, {"save_steps": 0}, "0", "at least 1"),
    (recover, {"save_steps": 1.5}, "1.5", "a whole number"),
    (recover, {"training_arguments": {"nope": 1}}, "nope", "TrainingArguments"),
    (recover, {"training_arguments": {"seed": 1}}, "seed", "seed"),
    (recover, {"training_arguments": {"logging_strategy": "no"}}, "logging_strategy", "settings of recover"),
    (recover, {"training_arguments": {"save_only_model": True}}, "save_only_model", "settings of recover"),
    (recover, {"training_arguments": {"ignore_data_skip": True}}, "ignore_data_skip", "settings of recover"),
    (recover, {"training_arguments": {"label_smoothing_factor": 0.1}}, "label_smoothing", "settings of reco"),
    (recover, {"resume": "no"}, "'no'", "True or False"),
    (recover, {"merge": "no"}, "'no'", "True or False"),
    (recover, {"examples": [{"text": ""}]}, "no response in any of 1 examples", "raise the cutoff"),
    (recover, {"training_arguments": 5}, "5", "TrainingArguments"),
    (recover, {"training_arguments": {"weight_decay": "a"}}, "weight_decay", "a number in [0, inf), got 'a'"),
    (recover, {"training_arguments": {"max_grad_norm": None}}, "max_grad_norm", "a number in [0, inf)"),
    (recover, {"training_arguments": {"weight_decay": -1}}, "weight_decay", "a number in [0, inf), got -1"),
    (recover, {"training_arguments": {"adam_beta1": 2}}, "adam_beta1", "can't be used"),
    (recover, {"training_arguments": {"group_by_length": "x"}}, "group_by_length", "TrainingArguments"),
    (recover, {"training_arguments": {"optim": "best"}}, "'optim': 'best'", "can't be used"),
    (recover, {"training_arguments": {"lr_scheduler_type": "up"}}, "'up'", "can't be used"),
    (recover, {"training_arguments": {"lr_scheduler_kwargs": {"x": 1}}}, "'x': 1", "can't be used"),
    (recover, {"training_arguments": {"report_to": "nobody"}}, "'report_to': 'nobody'", "can't be used"),
    (recover, {"training_arguments": {"torch_compile": "x"}}, "torch_compile", "True or False, got 'x'"),
    (recover, {"rate": 1e-3}, "rate", "learning_rate"),
    (recover, {"steps": 0}, "0", "at least 1"),
    (recover, {"steps": 1.5}, "1.5", "a whole number"),
    (recover, {"steps": "5"}, "'5'", "a whole number"),
    (recover, {"steps": None, "epochs": 0}, "0", "(0, inf)"),
    (recover, {"epochs": INF}, "inf", "(0, inf)"),
    (recover, {"epochs": "2"}, "'2'", "(0, inf)"),
    (recover, {"batch_size": 3}, "3", "multiple of micro_batch_size"),
    (recover, {"batch_size": 0}, "0", "at least 1"),
    (recover, {"micro_batch_size": -1}, "-1", "at least 1"),
    (recover, {"micro_batch_size": 1.0}, "1.0", "a whole number"),
    (recover, {"learning_rate": 0}, "0", "(0, inf)"),
    (recover, {"learning_rate": "fast"}, "'fast'", "(0, inf)"),
    (recover, {"learning_rate": INF - INF}, "nan", "(0, inf)"),
    (recover, {"warmup_steps": -1}, "-1", "at least 0"),
    (recover, {"rank": 1.5}, "1.5", "a whole number"),
    (recover, {"rank": 0}, "0", "at least 1"),
    (recover, {"alpha": -1}, "-1", "(0, inf)"),
    (recover, {"dropout": 1}, "1", "[0, 1)"),
    (recover, {"cutoff": 0}, "0", "at least 1"),
    (recover, {"cutoff": 3}, "3", "raise the cutoff"),
    (recover, {"seed": -1}, "-1", "at least 0"),
    (recover, {"seed": 2**32}, "4294967296", "[0, 4294967296)"),
    (recover, {"seed": None}, "None", "a whole number"),
    (recover, {"target_modules": "nope"}, "'nope'", "q_proj"),
    (recover, {"target_modules": ["q_proj", "nope"]}, "['nope']", "q_proj"),
    (recover, {"target_modules": []}, "[]", "a list"),
    (recover, {"target_modules": 5}, "5", "a list that is not empty, each entry a text string"),
    (macs, {"model": None}, "None", "load_model"),
    (macs, {"tokens": 0}, "0", "at least 1"),
    (macs, {"tokens": 2.5}, "2.5", "a whole number"),
    (latency, {"model": None}, "None", "load_model"),
    (latency, {"tokens": 0}, "0", "at least 1"),
    (latency, {"batch": 0}, "0", "at least 1"),
    (latency, {"repeats": 0}, "0", "at least 1"),
    (latency, {"repeats": "3"}, "'3'", "a whole number"),
    (latency, {"warmup": -1}, "-1", "at least 0"),
    (quantise_, {"model": None}, "None", "load_model"),
    (quantise_, {"model": nn.Sequential()}, "Sequential", "linear"),
    (quantise_, {"outlier": -1}, "-1", "(0, inf)"),
    (quantise_, {"outlier": "6"}, "'6'", "(0, inf)"),
    (quantise_, {"per_token": "no"}, "'no'", "True or False"),
    (Plan.from_json, {"source": "{}"}, "keep", "n_groups"),
    (Plan.from_json, {"source": "{"}, "not a plan", "keep"),
    (Plan.from_json, {"source": '{"a":' * 1500}, "not a plan", "keep"),
    (Plan.from_json, {"source": sys.executable}, "not a plan", "keep"),  # no text
    (Plan.from_json, {"source": edited(query_heads="no")}, "'no'", "True or False"),
    (Plan.from_json, {"source": edited(settings=None)}, "None", "a dict"),
    (Plan.from_json, {"source": edited({"layers": [0]}, {"layers": 2})}, "whole layers", "discover again"),
    (
        Plan.from_json,
        {"source": edited({HEADS: [10**12]}, {HEADS: 10**12})},
        "[1000000000000]",
        "a sorted list",
    ),
    (Plan.from_json, {"source": "nowhere.json"}, "nowhere.json", "keep"),
    (Plan.from_json, {"source": 5}, "5", "keep"),
    (Plan.from_json, {"source": "full/latin.txt"}, "latin.txt", "keep"),
    (Plan.from_json, {"source": "new\ud800"}, "\\ud800", "keep"),
    (Plan.from_json, {"source": "new\0"}, "null byte", "keep"),
    (Plan, {"keep": {5: [0]}, "n_groups": {5: 2}}, "5", "a text"),
    (Plan, {"keep": {"a": [2**70]}, "n_groups": {"a": 2**71}}, "which is too large", "a whole number"),
    (PLAN.to_json, {"path": "full"}, "'full'", "pass a file name"),
    (PLAN.to_json, {"path": "nowhere/plan.json"}, "'nowhere/plan.json'", "pass a file name"),
    (PLAN.to_json, {"path": 5}, "5", "pass a file name"),
    (Plan.from_json, {"source": '{"keep": 5, "n_groups": {}}'}, "5", "keep"),
    (Plan, {"keep": {"b": [0]}}, "'b'", "keep and n_groups"),
    (Plan, {"keep": {"a": []}}, "[]", "at least one"),
    (Plan, {"keep": {"a": [1, 0]}}, "[1, 0]", "sorted"),
    (Plan, {"keep": {"a": [0, 0]}}, "[0, 0]", "without repeats"),
    (Plan, {"keep": {"a": [2]}}, "[2]", "0..1"),
    (Plan, {"keep": {"a": "x"}}, "'x'", "list"),
    (Plan, {"keep": {"a": [0.5]}}, "0.5", "list"),
    (Plan, {"keep": None}, "None", "keep"),
    (Plan, {"n_groups": {"a": "2"}}, "'2'", "whole number"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a file and a folder of something else; give what lies there."""
    monkeypatch.chdir(tmp_path)
    Path("taken.txt").write_text("mine")
    Path("full").mkdir()
    Path("full/latin.txt").write_bytes(b"\xe9t\xe9")
    Path("full/cut.gz").write_bytes(gzip.compress(b"a river " * 99)[:-9])
    Path("full/other.gz").write_bytes(b"a river")
    Path("full/rows.json").write_text('[{"question": "a"}]')
    Path("full/none.json").write_text("[]")
    Path("dangling").symlink_to("nowhere/at/all")
    return lambda: {path.as_posix(): path.lstat().st_mtime_ns for path in Path().rglob("*")}


def name(value) -> str:
    is_table = isinstance(value, (torch.Tensor, np.ndarray, pd.DataFrame))
    return f"{type(value).__name__}{tuple(value.shape)}" if is_table else ascii(value)[:30]


def ids(case):
    wrong = ",".join(f"{key}={name(value)}" for key, value in case[1].items())
    return f"{case[0].__qualname__}({wrong})"


# all names that lm-eval knows are looked through
MISSPELT = pytest.param((zero_shot, {"tasks": ["bolq"]}, "'bolq'", "boolq"), marks=pytest.mark.slow)


@pytest.mark.parametrize("case", [*CASES, MISSPELT], ids=ids)
def test_one_sentence_says_what_came_and_what_is_wanted(case, place):
    function, wrong, came, wanted = case
    before = place()
    weights = {name: weight.clone() for name, weight in MODEL.named_parameters()}
    runs = MODEL.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    try:
        with pytest.raises(ValueError) as caught, warnings.catch_warnings():
            warnings.simplefilter("error")
            function(**GOOD[function] | wrong)
    finally:
        runs.remove()
    sentence = str(caught.value)
    assert came in sentence and wanted in sentence and "\n" not in sentence, sentence
    assert place() == before, "something was written"
    assert all(torch.equal(weight, weights[name]) for name, weight in MODEL.named_parameters())


@pytest.mark.parametrize("function", GOOD, ids=lambda function: function.__qualname__)
def test_the_same_calls_with_nothing_wrong_are_right(function, place):
    function(**copy.deepcopy(GOOD[function]))


def test_a_number_of_numpy_or_torch_is_a_number():
    for ratio in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)):
        plan = select(AXES, SCORES, ratio=ratio, protect_first=np.int64(0))
        assert plan.to_json() == PLAN.to_json()
    assert re.search("0.5", PLAN.to_json())
    wanted = estimate(MODEL, AXES, IDS, micro_batch=2), estimate(MODEL, AXES, criterion="random", seed=4)
    for number in (np.int64, torch.tensor):
        got = estimate(MODEL, AXES, IDS, micro_batch=number(2))
        assert all(torch.equal(got[name], scores) for name, scores in wanted[0].items())
        got = estimate(MODEL, AXES, criterion="random", seed=number(4))
        assert all(torch.equal(got[name], scores) for name, scores in wanted[1].items())


@pytest.mark.slow
def test_a_recovery_takes_the_numbers_of_numpy(place):
    names = {"seed": np.int64(3), "rank": np.int64(2), "learning_rate": np.float64(1e-3)}
    plain = {name: number.item() for name, number in names.items()}
    rows = [recover(**copy.deepcopy(GOOD[recover]) | {"output_dir": how} | some).history
            for how, some in (("numpy", names), ("plain", plain))]  # fmt: skip
    assert rows[0][-1]["loss"] == rows[1][-1]["loss"]


def test_a_device_of_torch_and_a_path_that_is_a_name_will_do(place):
    folder = save_model(copy.deepcopy(MODEL), TOKENIZER, "mine")
    assert load_model(folder, device=torch.device("cpu"))[0].device.type == "cpu"
    assert instructions(Path("tiny")) == instructions("tiny")
    assert torch.equal(*(text_ids(name, TOKENIZER, length=8) for name in (Path("tiny"), "tiny")))


def test_a_model_with_numbers_that_are_none_is_not_repaired_nor_asked_to_write():
    with pytest.raises(ValueError, match="a layer reads NaN or infinity; check the weights"):
        repair_(copy.deepcopy(NO_NUMBERS), PLAN, IDS)
    with pytest.raises(ValueError, match="nan.*; check these arguments, or the model's weights"):
        generate_samples(NO_NUMBERS, TOKENIZER, ["a river"], max_new_tokens=2)


def test_a_plan_in_utf_8_with_its_mark_is_read(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json(), encoding="utf-8-sig")
    assert Plan.from_json(tmp_path / "plan.json").to_dict() == PLAN.to_dict()


@pytest.mark.parametrize("kinds", [["heads"], [5], [["mlp"]]])
def test_axes_of_a_kind_that_there_is_not_are_refused(kinds):
    with pytest.raises(ValueError, match=r"unknown kinds\[0\].*choose one of attention, mlp, hidden"):
        AXES.of_kind(*kinds)
