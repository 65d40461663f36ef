"""The memory of training is predicted, and what would not fit is refused with settings that do."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from small_recovery import EXAMPLES, QUICK, adapter, make
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from pruner_lib.method import predict_memory as module
from pruner_lib.method.memory import HOLES
from pruner_lib.models.tiny import tiny_tokenizer
from pruner_lib.recovery.instructions import encode
from pruner_lib.recovery.predict_memory import predict_training_memory
from pruner_lib.recovery.recover import add_adapter, recover
from pruner_lib.recovery.settings import RecoverySettings

pytestmark = pytest.mark.usefixtures("one_thread")


def bytes_at_peak(run) -> int:
    """Count the bytes of all tensors that live at the same time, beside those there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    changes = [one for one in watched.profiler.kineto_results.events() if one.name() == "[memory]"]
    changes.sort(key=lambda one: one.start_ns())
    return max(accumulate(one.nbytes() for one in changes))


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "error"), [(False, 0.15), (True, 0.6)])
def test_prediction_is_near_the_tensors_at_the_peak(tmp_path, checkpointing, error):
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, vocab_size=8000)).eval()
    examples = [{"instruction": "a", "output": "one two three " * 100}] * 4
    settings = {"steps": 1, "batch_size": 4, "warmup_steps": 0, "cutoff": 250}
    settings |= {"gradient_checkpointing": checkpointing}
    adapted = add_adapter(model, RecoverySettings(**settings))
    rows = encode(examples, tokenizer, cutoff=250)
    predicted = predict_training_memory(adapted, RecoverySettings(**settings), rows)
    model = adapted.unload()
    peak = bytes_at_peak(lambda: recover(model, tokenizer, examples, output_dir=tmp_path, **settings))
    holes = predicted.activations // 3 + HOLES // 2  # between tensors; the allocator's, different each time
    assert predicted.extra - holes == pytest.approx(peak, rel=error) and peak < predicted.extra


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
