"""What the models of a study write: the same prompts continued before and after (paper, Tables 11, 18 to 21).

Texts are generated once and kept as `results/<profile>/samples/<key>.json`. The paper prints its prompts and
texts but no numbers; how texts repeat themselves is counted by `perplexity`, which generates them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from pruner_lib.evaluation.perplexity import PROMPTS, Sample, generate_samples
from pruner_lib.study.cache import inputs_hash, recovery_key
from pruner_lib.study.run import Study
from pruner_lib.study.settings import Experiment

PROMPTS_FILE = Path(__file__).with_name("prompts.yaml")  # the paper's: table -> prompts, each with its model
CELL = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}


def samples_of(
    study: Study,
    experiment: Experiment,
    *,
    prompts: Iterable[str] | None = None,
    new_tokens: int | None = None,
    draws: int = 1,
    seed: int = 0,
) -> list[Sample]:
    """Continue prompts with an experiment's model; once.

    Args:    prompts: None takes as many of `perplexity.PROMPTS` as the profile says.
             new_tokens: at most so many a prompt, None: as the profile says.
             draws: texts for each prompt.    seed: of the first prompt; the others take the next numbers.
    Returns: the samples, those of one prompt side by side; see `generate_samples`.
    """
    texts = list(PROMPTS[: study.profile.prompts] if prompts is None else prompts)
    length = study.profile.new_tokens if new_tokens is None else new_tokens

    def make() -> dict[str, Any]:
        model, tokenizer = study.model(experiment)
        samples = generate_samples(model, tokenizer, texts, max_new_tokens=length, draws=draws, seed=seed)
        origin = {"model": experiment.model, "stage": experiment.stage, "new_tokens": length}
        return origin | {"samples": [asdict(one) for one in samples]}

    made = experiment.model_settings()
    if experiment.recovery:
        made = [recovery_key(experiment), experiment.recovery.at, experiment.int8]
    sizes = [length, draws, seed] if (draws, seed) != (1, 0) else [length]
    key = [made, inputs_hash(experiment, evaluated=False), texts, *sizes]
    return [Sample(**one) for one in study.cached(key, make, folder="samples")["samples"]]


def side_by_side(samples: Mapping[str, Sequence[Sample]]) -> Styler:
    """Show how several models continue the same prompts, a row a prompt; markup in a text stays text.

    Args:    samples: name of a model -> its samples, in the order of the prompts.
    """
    table = pd.DataFrame({"prompt": [one.prompt for one in next(iter(samples.values()))]})
    for name, own in samples.items():
        rates = [f"repeated: {one.repetition_rate:.0%}, different pairs: {one.distinct:.0%}" for one in own]
        table[name] = [f"{one.text.strip()}\n({said})" for one, said in zip(own, rates, strict=True)]
    return table.style.format(escape="html").hide().set_properties(**CELL)
