"""The memory of training is predicted, and what would not fit is refused with settings that do."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from small_recovery import EXAMPLES, QUICK, adapter, make

from pruner_lib.recovery import predict_memory as module
from pruner_lib.recovery.instructions import encode
from pruner_lib.recovery.predict_memory import predict_training_memory
from pruner_lib.recovery.recover import add_adapter, recover
from pruner_lib.recovery.settings import RecoverySettings

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = """
import json, sys, tempfile, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from pruner_lib.evaluation.meters import meter
from pruner_lib.models.load import tiny_tokenizer
from pruner_lib.recovery.instructions import encode
from pruner_lib.recovery.predict_memory import predict_training_memory
from pruner_lib.recovery.recover import add_adapter, recover
from pruner_lib.recovery.settings import RecoverySettings

torch.set_num_threads(1)
tokenizer = tiny_tokenizer()
config = LlamaConfig(hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
                     vocab_size=8000)
model = AutoModelForCausalLM.from_config(config).eval()
examples = [{"instruction": "a", "output": "one two three " * 100}] * 4
rows = encode(examples, tokenizer, cutoff=250)
for way in ({"gradient_checkpointing": True}, {}):  # the smaller one first: less is left behind
    settings = dict(steps=1, batch_size=4, warmup_steps=0, cutoff=250, **way)
    adapted = add_adapter(model, RecoverySettings(**settings))
    predicted = predict_training_memory(adapted, RecoverySettings(**settings), rows)
    model = adapted.unload()
    _, peak = meter("cpu")
    recover(model, tokenizer, examples, output_dir=tempfile.mkdtemp(), **settings).model.unload()
    print(json.dumps([predicted.total / 2**20, peak()]))
"""


@pytest.mark.slow
def test_prediction_is_within_25_percent_of_the_peak():
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    (less, less_peak), (whole, peak) = (json.loads(line) for line in done.stdout.splitlines())
    assert less == pytest.approx(less_peak, rel=0.25) and whole == pytest.approx(peak, rel=0.25)
    assert less < 0.9 * whole


def test_less_is_kept_of_smaller_micro_batches_and_with_recomputation(tokenizer):
    model, rows = make(), encode(EXAMPLES, tokenizer)

    def predicted(**settings):
        settings = RecoverySettings(batch_size=4, **settings)
        return predict_training_memory(adapted, settings, rows)

    adapted = add_adapter(model, RecoverySettings())
    whole, single = predicted(micro_batch_size=4), predicted(micro_batch_size=1)
    assert whole.activations == 4 * single.activations and whole.optimizer == single.optimizer > 0
    assert predicted(micro_batch_size=4, gradient_checkpointing=True).activations < 0.8 * whole.activations
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    "least", [{"micro_batch_size": 2}, {"micro_batch_size": 2, "gradient_checkpointing": True}]
)
def test_what_does_not_fit_is_refused_with_settings_that_fit(tokenizer, tmp_path, monkeypatch, least):
    settings = {**QUICK, "batch_size": 8, "micro_batch_size": 8}
    fitting = RecoverySettings(**{**settings, **least})
    adapted = add_adapter(make(), fitting)
    available = predict_training_memory(adapted, fitting, encode(EXAMPLES, tokenizer)).extra
    monkeypatch.setattr(module, "available_bytes", lambda device: available)
    with pytest.raises(ValueError, match=r"micro_batch_size=8 needs .* GB are available; try") as error:
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **settings)
    size, recompute = re.search(r"size=(\d+), gradient_checkpointing=(\w+), ", str(error.value)).groups()
    advice = {"micro_batch_size": int(size), "gradient_checkpointing": recompute == "True"}
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **{**settings, **advice})
    assert adapter(tmp_path)


def test_what_can_never_fit_says_so(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    wanted = (
        "smaller cutoff or a machine with more memory: even micro_batch_size=1, gradient_checkpointing=True"
    )
    with pytest.raises(ValueError, match=wanted):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)
