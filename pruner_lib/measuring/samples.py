"""What the models of a study say: the same prompts continued before and after (paper, Tables 11, 18 to 21).

Texts are generated once and kept as `results/<profile>/samples/<key>.json`. How they are generated is known
to `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from pruner_lib.experiments.experiment import Experiment, settings_key
from pruner_lib.experiments.profiles import load_profile
from pruner_lib.experiments.results import results_dir as profile_dir
from pruner_lib.experiments.stages import model_hash, recovery_key
from pruner_lib.experiments.storage import read_json, write_json
from pruner_lib.experiments.study import model_of
from pruner_lib.measuring.evaluation import PROMPTS, Sample, generate_samples

if TYPE_CHECKING:
    import pandas as pd


ROW = "border-top: 1px solid rgba(128, 128, 128, 0.4)"
CELL = (
    "vertical-align: top; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; padding: 6px 10px"
)


@dataclass(frozen=True)
class SideBySide:
    """Texts of several models that continue the same prompts; shows itself as a table in a notebook.

    Args:    samples: name of a model -> its samples, in the order of the prompts.
    """

    samples: Mapping[str, Sequence[Sample]]

    def __post_init__(self) -> None:
        prompts = {name: [one.prompt for one in samples] for name, samples in self.samples.items()}
        if len({tuple(one) for one in prompts.values()}) != 1:
            raise ValueError(
                f"the models {', '.join(prompts)} did not continue the same prompts, wanted the same"
            )

    def frame(self) -> pd.DataFrame:
        """Lay the texts out as a tidy table: model, prompt, text, repetition_rate, distinct."""
        import pandas as pd

        rows = [{"model": name} | asdict(one) for name, samples in self.samples.items() for one in samples]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        names = "".join(f'<th style="{CELL}">{escape(name)}</th>' for name in self.samples)
        rows = "".join(
            f'<tr style="{ROW}"><td style="{CELL}"><b>{escape(texts[0].prompt)}</b></td>'
            + "".join(f'<td style="{CELL}">{_text(one)}</td>' for one in texts)
            + "</tr>"
            for texts in zip(*self.samples.values(), strict=True)
        )
        head = f'<tr><th style="{CELL}; width: 18%">prompt</th>{names}</tr>'
        return (
            f'<table style="table-layout: fixed; width: 100%; border-collapse: collapse">{head}{rows}</table>'
        )


def _text(sample: Sample) -> str:
    note = f"repeated: {sample.repetition_rate:.0%}, different pairs: {sample.distinct:.0%}"
    return f'{escape(sample.text.strip())}<div style="opacity: 0.65; padding-top: 4px"><i>{note}</i></div>'


def samples_of(
    experiment: Experiment,
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
    prompts: Iterable[str] | None = None,
    new_tokens: int | None = None,
    draws: int = 1,
    seed: int = 0,
) -> list[Sample]:
    """Give the continuations of an experiment's model; generate them only if there are none.

    Args:    prompts: None takes as many of `evaluation.PROMPTS` as the profile says.
             new_tokens: at most so many a prompt, None: as the profile says.
             draws: texts for each prompt.    seed: of the first prompt; the others take the next numbers.
    Returns: the samples, those of one prompt side by side, by the sampling settings of the paper's code; see
             `generate_samples`.
    """
    settings = load_profile(profile)
    wanted = list(PROMPTS[: settings.prompts] if prompts is None else prompts)
    length = settings.new_tokens if new_tokens is None else new_tokens
    key = _key(experiment, wanted, length, *([draws, seed] if (draws, seed) != (1, 0) else []))
    path = profile_dir(profile, results_dir) / "samples" / f"{key}.json"
    if not path.is_file():
        model, tokenizer = model_of(experiment, profile=profile, results_dir=results_dir)
        made = generate_samples(model, tokenizer, wanted, max_new_tokens=length, draws=draws, seed=seed)
        model_name = {"model": experiment.model, "stage": experiment.stage, "new_tokens": length}
        write_json(path, model_name | {"samples": [asdict(one) for one in made]})
    return [Sample(**one) for one in read_json(path)["samples"]]


def _key(experiment: Experiment, prompts: Sequence[str], *sizes: int) -> str:
    """Name the texts of a model; how it is measured otherwise does not matter to them."""
    asked = experiment.canonical()
    settings = asked.settings()
    del settings["evaluation"]
    made = [recovery_key(asked), asked.recovery.at, asked.int8] if asked.recovery else settings
    return settings_key([made, model_hash(asked.model), list(prompts), *sizes])
