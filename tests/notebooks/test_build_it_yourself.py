"""Notebook 14: its solutions are right, a wrong one is told so, and unwritten steps don't stop it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from in_process import NOTEBOOKS, execute

from pruner_lib.study.results import results_dir

[PATH] = [path for path in NOTEBOOKS if path.stem == "14_build_it_yourself"]
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
STUB = re.compile(r"def (\w+)\(.*\n    \.\.\.$", re.MULTILINE)


def solutions() -> dict[str, str]:
    """The folded solutions: name of the function -> its source."""
    cells = nbformat.read(PATH, as_version=4).cells
    found = [one for cell in cells if cell.cell_type == "markdown" for one in SOLUTION.findall(cell.source)]
    return {re.match(r"def (\w+)", source)[1]: source for source in found}


def with_solutions(folder: Path, written: dict[str, str]) -> Path:
    """A copy of the notebook in which a reader has written some of the functions."""
    book = nbformat.read(PATH, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = STUB.sub(lambda stub: written.get(stub[1], stub[0]).rstrip(), cell.source)
    nbformat.write(book, folder / PATH.name)
    return folder / PATH.name


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Run the notebook with some functions written: what it says of each step."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))

    def run(written):
        execute(with_solutions(tmp_path, written), profile="tiny")
        return pd.read_csv(results_dir("tiny") / "tables" / "14_steps.csv").yours.tolist()

    return run


def test_there_is_a_solution_for_every_step():
    code = "\n".join(c.source for c in nbformat.read(PATH, as_version=4).cells if c.cell_type == "code")
    assert STUB.findall(code) == list(solutions()) and len(solutions()) == 6


def test_with_the_solutions_every_step_is_right(steps):
    assert steps(solutions()) == ["right"] * 6


@pytest.mark.slow
def test_steps_that_are_not_written_say_so_and_those_after_them_wait(steps):
    missing = "nothing returned yet: write the function, and end it with return"
    assert steps({}) == [missing] * 6
    without = {name: source for name, source in solutions().items() if name != "channel_scores"}
    assert steps(without) == ["right", *[missing] * 3, "right", "right"]
    without = {
        name: source.replace("return mlp", "").replace("return attention", "")
        for name, source in solutions().items()
    }
    assert steps(without) == [*["right"] * 3, missing, "right", missing], "changed in place"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "right", "wrong", "said"),
    [
        ("saliency", ".abs()", "", "1. saliency: not right yet"),
        ("channel_scores", " + down.sum(0)", "", "2. channels: not right yet"),
        (
            "groups_to_keep",
            "int(len(scores) * (1 - ratio))",
            "int(len(scores) * (1 - ratio)) - 1",
            "3. choice",
        ),
        ("cut_mlp", "weight[:, keep]", "weight[:, : len(keep)]", "4. cut MLP: not right yet"),
        ("head_scores", ", v.sum(1)", "", "5. heads: not right yet"),
        ("cut_attention", '("v", 0, 16)', '("v", 0, 16 // 1)', None),
        ("cut_attention", "[keep].flatten()", "[1 - keep].flatten()", "6. cut head: not right yet"),
    ],
)
def test_a_wrong_step_is_told_so(step, right, wrong, said, steps):
    assert right in solutions()[step]
    written = solutions() | {step: solutions()[step].replace(right, wrong)}
    if said is None:  # another way to write the same
        assert steps(written) == ["right"] * 6
    else:
        with pytest.raises(AssertionError, match=re.escape(said)):
            steps(written)
