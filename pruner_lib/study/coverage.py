"""Where each of the paper's 21 tables and 6 figures is made again: notebook, file, or why it can't be.

The README shows the same table. Files lie below `results/<profile>/`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

from pruner_lib.study.results import results_dir

OURS = "of the profile's model; in `paper` the paper's own"
ALONE = "in the profile `paper` alone"
UNPRINTED = "ratio and criterion are ours: the paper states none"


@dataclass(frozen=True)
class Item:
    """One table or figure of the paper.

    Args:    name: as "Table 3".    shows: what it holds.    notebook: its name without ending; empty: none.
             file: the first of its files, below the results of a profile.
             note: what differs from the paper, or why it can't be made again.
    """

    name: str
    shows: str
    notebook: str
    file: str
    note: str = ""


DISCOVER, COMPARE, DEPENDENCY = "01_discover_groups", "03_compare_methods", "04_dependency"
AGGREGATION, RATIO, SENSITIVITY = "05_aggregation", "06_pruning_ratio", "07_layer_sensitivity"
GRANULARITY, RECOVERY, EFFICIENCY = "08_granularity", "09_recovery", "10_efficiency"
GENERATION = "11_generation"
METHODS, SIZES, TEXTS = "tables/03_result.csv", "tables/08_result.csv", "tables/11_samples.csv"
CHATGLM = f"{ALONE}; by GLM-4, since current libraries can't load ChatGLM-6B"
STABLELM = f"{ALONE}: StableLM-3B"
SAMPLES = "up to as many samples as a profile has; the 2.59 million of LaMini in none"
ITEMS = (
    Item("Table 1", "methods on LLaMA-7B, 20 %", COMPARE, METHODS, OURS),
    Item("Table 2", "methods on LLaMA-13B, 20 %", COMPARE, METHODS, ALONE),
    Item(
        "Table 3",
        "size, MACs, memory, latency",
        EFFICIENCY,
        "tables/10_table3.csv",
        "latency: this machine's",
    ),
    Item("Table 4", "methods on Vicuna-7B, 20 %", COMPARE, METHODS, ALONE),
    Item("Table 5", "methods on ChatGLM-6B, 10 %", COMPARE, METHODS, CHATGLM),
    Item("Table 6", "with and without dependency", DEPENDENCY, "tables/04_result.csv", OURS),
    Item("Table 7", "aggregation", AGGREGATION, "tables/05_result.csv", UNPRINTED),
    Item("Table 8", "fewer layers against narrower ones", GRANULARITY, SIZES, OURS),
    Item("Table 9", "pruned against trained small", GRANULARITY, "tables/08_native.csv", STABLELM),
    Item("Table 10", "50,000 and 2.59 million samples", RECOVERY, "figures/09_samples.csv", SAMPLES),
    Item("Table 11", "generated text", GENERATION, TEXTS, OURS),
    Item("Table 12", "LoRA's target modules", RECOVERY, "tables/09_modules.csv", OURS),
    Item("Table 13", "pruned and in 8 bits", EFFICIENCY, "tables/10_int8.csv", OURS),
    Item("Table 14", "global and local ranking", GRANULARITY, SIZES, OURS),
    Item("Table 15", "perplexity and accuracy over steps", RECOVERY, "tables/09_steps.csv", OURS),
    Item("Table 16", "methods on LLaMA-7B, 50 %", RATIO, "tables/06_half.csv", OURS),
    Item("Table 17", "methods on Vicuna-7B, 50 %", RATIO, "tables/06_half.csv", ALONE),
    Item("Table 18", "generated text, LLaMA", GENERATION, TEXTS, OURS),
    Item("Table 19", "generated text, Vicuna", GENERATION, TEXTS, ALONE),
    Item("Table 20", "generated text, ChatGLM", GENERATION, TEXTS, CHATGLM),
    Item("Table 21", "generated text, ChatGLM in Chinese", GENERATION, TEXTS, CHATGLM),
    Item(
        "Figure 1", "the idea; days of training saved", "", "", "a drawing; its costs are those of TinyBERT"
    ),
    Item("Figure 2", "groups in LLaMA", DISCOVER, "figures/01_groups.png", "drawn from what discovery finds"),
    Item("Figure 3", "sensitivity of layers", SENSITIVITY, "figures/07_layers.png", UNPRINTED),
    Item("Figure 4", "perplexity over the ratio", RATIO, "figures/06_ratio.png", f"Vicuna: {ALONE}"),
    Item("Figure 5", "perplexity over recovery steps", RECOVERY, "figures/09_steps.png", OURS),
    Item("Figure 6", "three cases of dependency", DISCOVER, "figures/01_dependency_cases.png"),
)


def coverage_frame(profile: str) -> pd.DataFrame:
    """Tell of every table and figure of the paper where it is made again, and whether its file is there.

    Raises:  ValueError: unknown profile.
    """
    place = results_dir(profile)
    found = {item.name: bool(item.file) and (place / item.file).is_file() for item in ITEMS}
    return pd.DataFrame([asdict(item) | {"there": found[item.name]} for item in ITEMS])
