"""Changed parameters are seen however they came, and their results go to a folder of their own."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from nbconvert import PythonExporter

from pruner_lib.study import Study
from pruner_lib.study import parameters as module
from pruner_lib.study.execution import changed_in
from pruner_lib.study.parameters import changed_parameters, folder_of
from pruner_lib.study.records import read_kept
from pruner_lib.study.results import Results, manifest_path, results_dir

NOTEBOOKS = sorted((Path(module.__file__).parents[2] / "notebooks").glob("*.ipynb"))
TAGGED = 'profile: str = "quick"  # which\nratio: float = 0.2\nplain = 1\n'
FRAME = pd.DataFrame({"step": [0, 1], "value": [40.0, 30.0]})


def tagged(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))


def test_the_defaults_are_those_of_the_notebooks():
    table = yaml.safe_load(Path(module.__file__).with_suffix(".yaml").read_text())
    assert list(table) == [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        cell = {one.target.id: ast.literal_eval(one.value) for one in ast.parse(tagged(path)).body}
        assert {"profile": "quick", **table[path.stem]} == cell and list(cell)[0] == "profile"
        alike = [one for one in table.values() if one.keys() == table[path.stem].keys()]
        assert all(one == alike[0] for one in alike), "a notebook is known by the names of its parameters"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_edited_cell_is_a_change_and_the_profile_is_none(path):
    cell = tagged(path)
    assert changed_parameters([cell]) == changed_parameters([cell.replace('"quick"', '"tiny"')]) == {}
    assert changed_in(path, {"profile": "paper"}) == {}
    if "ratio: float" in cell:
        start, value, rest = cell.partition("ratio: float = ")
        edited = start + value + "0.55" + rest[rest.index("  #") :]
        assert changed_parameters([edited, "import os", "ratio = ratio or 0.1"]) == {"ratio": 0.55}
        assert changed_parameters([edited, cell]) == {}, "the last run of the cell counts"
        assert changed_in(path, {"profile": "tiny", "ratio": 0.55}) == {"ratio": 0.55}
        default = ast.literal_eval(rest.partition("  #")[0])
        assert changed_in(path, {"ratio": default}) == {}


def code_of(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_later_cell_changes_a_parameter_and_the_cells_of_the_notebook_do_not(path):
    cells = code_of(path)
    assert changed_parameters(cells) == {}
    for name, value in list(module.assigned(tagged(path)).items())[1:]:
        other = "l1" if isinstance(value, str) else [7] if isinstance(value, list) else 7
        assert changed_parameters([cells[0], f"{name} = {other!r}", *cells[1:]]) == {name: other}
        assert changed_parameters([*cells, f"{name} = {other!r}", cells[0]]) == {}, "the cell was run again"
        assert changed_parameters([cells[0], f"{name} = {name} * 3"]) == {name: f"{name} * 3"}
        assert changed_parameters([cells[0], f"{name} = {other!r}", 'profile = "tiny"']) == {name: other}
    assert changed_parameters([TAGGED, "plain = 2"]) == {}, "in any other notebook these are its own names"


def test_parameters_edited_in_a_script_made_by_nbconvert_are_changes(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "02_estimate_importance")
    source, _ = PythonExporter().from_filename(str(path))
    script = tmp_path / "02.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(module, "get_ipython", lambda: None)
    for old, new, changed in (
        ("", "", {}),
        ("toy_samples: int = 10", "toy_samples: int = 50", {"toy_samples": 50}),
        ("study = Study(profile)", "toy_seed = 3\nstudy = Study(profile)", {"toy_seed": 3}),
    ):
        assert source.count(old)
        script.write_text(source.replace(old, new))
        assert changed_parameters() == changed


def test_parameters_changed_after_the_set_up_are_refused_until_it_is_run_again(tmp_path, monkeypatch):
    cells = code_of(NOTEBOOKS[0])[:1]
    monkeypatch.setattr(module, "_cells_run", lambda: cells)
    study = Study("tiny", tmp_path)
    study.save_table(FRAME, "numbers")
    for more in ("ratio = 0.4", cells[0].replace("0.2", "0.4")):
        cells.append(more)
        for write in (
            lambda: study.save_table(FRAME, "numbers"),
            lambda: study.save_figure(Figure(), FRAME, "curve"),
            lambda: study.answer("counts", {}),
            lambda: study.finish("00_quickstart"),
        ):
            with pytest.raises(ValueError, match="changed after the set-up, to ratio=0.4; run the set-up"):
                write()
        assert Study("tiny", tmp_path).save_table(FRAME, "numbers").parts[-4:-2] == ("changed", "ratio=0.4")
        cells.pop()
    assert len(list(tmp_path.rglob("*.csv"))) == 2 and study.finish("00_quickstart")


def test_what_papermill_injects_is_compared_with_the_cell_before():
    assert changed_parameters([TAGGED, '# Parameters\nprofile = "tiny"\nplain = 2\n', "x = 1"]) == {
        "plain": 2
    }
    assert changed_parameters([TAGGED, "# Parameters\nratio = 0.2\nplain = 1\n"]) == {}
    assert changed_parameters(["%pip list", TAGGED, '# Parameters\nratio = float("nan")\n'])["ratio"]
    assert changed_parameters(["steps = 3", "# Parameters\nsteps = 4\n"]) == {"steps": 4}
    assert changed_parameters([TAGGED, "import os"]) == changed_parameters() == {}  # no notebook


def test_misspelt_parameter_that_papermill_injects_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no parameter ration; it has profile, ratio, plain"):
        changed_parameters([TAGGED, "# Parameters\nration = 0.5\n"])


@pytest.mark.parametrize("names", [module.PATHS[:1], module.PATHS[1:], module.PATHS])
def test_the_paths_that_papermill_injects_are_no_parameters(names):
    paths = "".join(f'{name} = "s3://some/where.ipynb"\n' for name in names)
    assert changed_parameters([TAGGED, f"# Parameters\n{paths}"]) == {}
    assert changed_parameters([TAGGED, f"# Parameters\nratio = 0.5\n{paths}"]) == {"ratio": 0.5}


VALUES = [
    0.5, 5, -1, 1e-05, True, None, "l2", "", " ", "a/b", "a\\b", "..", "/etc/passwd", "a,ratio=1", "a+b",
    "ä", "a:b", "x" * 300, "x" * 299 + "y", [], ["a", "b"], ["a+b"], ["a/b", "c"], [0.1, 0.2],
    list(range(99)), {"a": 1},
]  # fmt: skip


def test_folders_have_plain_names_and_no_two_changes_share_one(tmp_path):
    assert folder_of({}) == Path()
    assert folder_of({"ratio": 0.5, "seed": 1}) == Path("changed/ratio=0.5,seed=1")
    assert folder_of({"models": ["a", "b"]}) == Path("changed/models=a+b")
    folders = [folder_of({"value": value}) for value in VALUES]
    assert len(set(folders)) == len(VALUES)
    for folder in folders:
        assert len(folder.parts) == 2 and len(folder.name) < 100
        assert folder.name.isascii() and not set(folder.name) & set('/\\:*?"<>| ')
        (tmp_path / folder).mkdir(parents=True)


def test_changed_results_do_not_touch_those_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    seen = {}
    for changed in ({}, {"layer": 1}, {"layer": 0.5}):
        monkeypatch.setattr("pruner_lib.study.results.changed_parameters", lambda changed=changed: changed)
        own = Results("tiny")
        own.save_table(FRAME.assign(**changed), "numbers")
        assert own.folder == results_dir("tiny") and own.place == results_dir("tiny", changed=changed)
        place = "/".join([tmp_path.name, "tiny", *folder_of(changed).parts])
        said, again = (
            own.finish("00_test"),
            "".join(f" --set {name}={value}" for name, value in changed.items()),
        )
        assert f"in {place}: tables/numbers.csv. Made by: " in said
        assert said.endswith(f" python tasks.py study --profile tiny --only 00_test{again}")
        assert own.provenance().endswith(own.place.relative_to(tmp_path).as_posix())
        manifest = manifest_path("00_test", "tiny", changed)
        assert read_kept(manifest)["outputs"] == ["tables/numbers.csv"]
        seen[manifest] = own.outputs[0].read_text()
    assert len(seen) == len(set(seen.values())) == 3 and all(path.is_file() for path in seen)
