"""What is wrong in the study gets one sentence, before anything is measured or written.

Parameters of notebooks, profiles of one's own, experiments, the command lines and the places; the library's
own functions are in `tests/library/test_bad_input.py`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
from in_process import NOTEBOOKS

from pruner_lib.study import Study, notebooks
from pruner_lib.study.notebooks import main as run_notebooks
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.reproduce import main as reproduce
from pruner_lib.study.results import results_dir
from pruner_lib.study.settings import Experiment, from_plain
from tests.benchmarks.stress import main as stress

PARAMETERS = [  # notebook, what is given, what came, what is wanted
    ("00", {"profile": "tyni"}, "'tyni'", "decide, paper, quick, tiny"),
    ("00", {"profile": ["tiny"]}, "['tiny']", "a text"),
    ("00", {"ratio": 0}, "0", "(0, 1)"),
    ("00", {"ratio": 20}, "20", "(0, 1)"),
    ("00", {"ratio": "0.2"}, "'0.2'", "(0, 1)"),
    ("00", {"criterion": "taylor"}, "'taylor'", "random, l1, l2"),
    ("01", {"layer": -1}, "-1", "at least 0"),
    ("01", {"seed": 0.5}, "0.5", "a whole number"),
    ("02", {"toy_samples": 1}, "1", "at least 2"),
    ("02", {"toy_seed": "x"}, "'x'", "a whole number"),
    ("03", {"methods": "l2"}, "'l2'", "a list"),
    ("03", {"methods": ["l2", "l3"]}, "'l3'", "element1"),
    ("03", {"models": "tiny"}, "'tiny'", "a list"),
    ("03", {"models": [5]}, "5", "a text"),
    ("03", {"methods": ["l2"], "recovered": ["l1"]}, "'l1'", "l2"),
    ("03", {"draws": -1}, "-1", "at least 0"),
    ("03", {"draws": 2.5}, "2.5", "a whole number"),
    ("03", {"ratio": 1}, "1", "[0, 1)"),
    ("04", {"criterion": "l2"}, "'l2'", "vector, element1, element2, mixed"),
    ("04", {"model": ["tiny"]}, "['tiny']", "a text"),
    ("05", {"criterion": "random"}, "'random'", "l1, l2"),
    ("05", {"draws": True}, "True", "a whole number"),
    ("06", {"half": 0}, "0", "(0, 1)"),
    ("06", {"ratios": [0.2, 1.0]}, "1.0", "[0, 1)"),
    ("06", {"ratios": 0.5}, "0.5", "a list"),
    ("06", {"methods": []}, "[]", "not empty"),
    ("07", {"layers": 0}, "0", "a list"),
    ("07", {"layers": [-1]}, "-1", "at least 0"),
    ("07", {"ratio": -0.1}, "-0.1", "[0, 1)"),
    ("08", {"designs": ["columns"]}, "'columns'", "every second layer"),
    ("08", {"ratios": [0]}, "0", "(0, 1)"),
    ("08", {"ratios": [0.2, 0.2]}, "[0.2, 0.2]", "an entry twice"),
    ("08", {"seed": 2**64}, "which is too large", "a whole number"),
    ("13", {"samples": [4, 4]}, "[4, 4]", "an entry twice"),
    ("03", {"methods": ["l2", "l2"]}, "['l2', 'l2']", "an entry twice"),
    ("04", {"seed": 2**64}, "which is too large", "a whole number"),
    ("09", {"share": 2}, "2", "(0, 1]"),
    ("09", {"share": 0}, "0", "(0, 1]"),
    ("09", {"ratio": None}, "None", "(0, 1)"),
    ("10", {"repeats": 1}, "1", "at least 2"),
    ("10", {"tokens": 0}, "0", "at least 1"),
    ("11", {"prompts": -1}, "-1", "at least 2"),
    ("11", {"prompts": 1}, "1", "at least 2"),
    ("11", {"prompts": 13}, "13", "[2, 12]"),
    ("11", {"new_tokens": "many"}, "'many'", "a whole number"),
    ("12", {"profile": 7}, "7", "a text"),
    ("13", {"samples": [1]}, "1", "at least 2"),
    ("13", {"ratios": "0.2"}, "'0.2'", "a list"),
    ("14", {"ratio": 1}, "1", "(0, 1)"),
]


@cache
def cells(notebook: Path) -> list[str]:
    """The cell of the parameters, the imports and the set-up."""
    code = [c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    return code[:3]


def names(notebook: Path) -> list[str]:
    return [line.target.id for line in ast.parse(cells(notebook)[0]).body]


def set_up(notebook: Path, **parameters) -> None:
    """Run a notebook as far as its first section."""
    values = {"__name__": "notebook"}
    for number, cell in enumerate(cells(notebook)):
        exec(cell, values)
        values |= {"profile": "tiny"} | parameters if number == 0 else {}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder where results would be written, and where we stand."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", PARAMETERS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_parameter_out_of_its_range_is_refused_in_the_set_up(case, place):
    start, wrong, came, wanted = case
    notebook = next(path for path in NOTEBOOKS if path.name.startswith(start))
    with pytest.raises(ValueError) as caught:
        set_up(notebook, **wrong)
    sentence = str(caught.value)
    assert came in sentence and wanted in sentence and "\n" not in sentence, sentence
    assert not list(place.iterdir()), "something was written"


EVERY = [(path, name) for path in NOTEBOOKS for name in names(path)]


@pytest.mark.parametrize(("path", "name"), EVERY, ids=lambda one: getattr(one, "stem", one))
def test_no_parameter_of_any_notebook_is_left_unchecked(path, name, place):
    with pytest.raises(ValueError, match=name + r".* \{'a': 1\}"):
        set_up(path, **{name: {"a": 1}})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_set_up_takes_the_defaults(path, place):
    set_up(path)


@pytest.mark.parametrize(
    ("start", "right"),
    [
        ("03", {"models": ["tiny"], "methods": ["l2", "channel"], "recovered": ["l2"], "draws": 2}),
        ("06", {"ratios": [0, 0.5], "half": 0.9, "model": "tiny"}),
        ("07", {"layers": [0, 1], "ratio": 0.5}),
        ("09", {"share": 1}),
        ("11", {"prompts": 2, "models": ["tiny"]}),
    ],
)
def test_set_up_takes_what_its_ranges_allow(start, right, place):
    set_up(next(path for path in NOTEBOOKS if path.name.startswith(start)), **right)


OWN = [  # a profile of one's own, what came, what is wanted
    ("ratio: 20", "20", "less than 1"),
    ("ratio: x", "'x'", "a valid number"),
    ("ratios: 0.5", "0.5", "a list"),
    ("ratios: [0.5, 1]", "1", "less than 1"),
    ("protect_first: -1", "-1", "greater than or equal to 0"),
    ("protect_last: 1.5", "1.5", "a valid integer"),
    ("draws: 0", "0", "greater than or equal to 1"),
    ("draws: many", "'many'", "a valid integer"),
    ("dtype: float64", "'float64'", "'float32'"),
    ("new_tokens: 0", "0", "greater than or equal to 1"),
    ("other_models: tiny", "'tiny'", "a list"),
    ("other_models: [tiny, tiny]", "other_models", "twice"),
    ("model: 5", "5", "a valid string"),
    ("model: null", "None", "a valid string"),
    ("nope: 1", "nope", "it has name, model"),
    ("calibration: 5", "5", "a mapping"),
    ("calibration: {samples: 0}", "0", "greater than or equal to 1"),
    ("calibration: {length: x}", "'x'", "a valid integer"),
    ("calibration: {seed: -1}", "-1", "greater than or equal to 0"),
    ("calibration: {bos: 1}", "1", "True, False or 'window'"),
    ("evaluation: {texts: wiki}", "'wiki'", "a list"),
    ("evaluation: {length: 1}", "1", "greater than or equal to 2"),
    ("evaluation: {windows: 0}", "0", "greater than or equal to 1"),
    ("evaluation: {limit: -5}", "-5", "greater than or equal to 1"),
    ("recovery: {learning_rate: 2}", "2", "less than 1"),
    ("recovery: {rank: 0}", "0", "at least 1"),
    ("recovery: {dropout: 1}", "1", "[0, 1)"),
    ("recovery: {epochs: 0}", "0", "greater than or equal to 1"),
    ("recovery: {target_modules: 5}", "5", "a list"),
    ("recovery: {keep_at: [-1]}", "-1", "greater than or equal to 0"),
    ("sweep: {layer_ratio: 1}", "1", "less than 1"),
    ("sweep: {half_protected: [1, 2, 3]}", "[1, 2, 3]", "at most 2 items"),
    ("method_study: {share: -1}", "-1", "greater than or equal to 0"),
    ("method_study: {methods: [nope]}", "'nope'", "'element1'"),
    ("method_study: {recovered: {nope: 1}}", "nope", "'element1'"),
    ("method_study: {recovered: {l2: 0}}", "0", "greater than or equal to 1"),
    ("sweep: {answering: [nope]}", "'nope'", "'element1'"),
    ("recovery_study: {draws: 0}", "0", "greater than or equal to 1"),
    ("after: {samples: 4}", "4", "a list"),
    ("after: {samples: []}", "[]", "at least 1 item"),
    ("after: {shares: []}", "[]", "at least 1 item"),
    ("ratios: []", "[]", "at least 1 item"),
    ("sweep: {shares: [0.2, 0.2]}", "[0.2, 0.2]", "something twice"),
    ("calibration_study: {corpora: []}", "[]", "at least 1 item"),
    ("calibration_study: {lengths: []}", "[]", "at least 1 item"),
    ("calibration_study: {samples: [3, 3]}", "[3, 3]", "something twice"),
    ("recovery_study: {samples: []}", "[]", "at least 1 item"),
    ("recovery_study: {batch_size: 3}", "batch_size=3", "a multiple of micro_batch_size"),
    ("recovery_study: {answer_at: [3]}", "(3,)", "only steps of keep_at"),
    ("draws: 99999999999999999999", "99999999999999999999", "less than"),
    ("calibration: {seed: 99999999999999999999}", "99999999999999999999", "less than"),
    ("evaluation: &e {texts: [tiny], bos: [*e]}", "Circular", "correct it"),
    ("ratios: &r [0.1, *r]", "Circular", "correct it"),
]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case[0])
def test_value_of_an_own_profile_is_refused_when_it_is_loaded(case, place, monkeypatch):
    text, came, wanted = case
    (place / "mine.yaml").write_text(f"mine: {{like: tiny, {text}}}\n")
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(place / "mine.yaml"))
    with pytest.raises(ValueError) as caught:
        load_profile("mine")
    sentence = str(caught.value)
    assert sentence.startswith("profile 'mine'") and "\n" not in sentence
    assert came in sentence and wanted in sentence, sentence


@pytest.mark.parametrize("text", ["mine: {draws: 3, draws: 5}", "mine: {draws: 3}\nmine: {draws: 5}"])
def test_own_profiles_that_name_something_twice_are_refused(text, place, monkeypatch):
    (place / "mine.yaml").write_text(text)
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(place / "mine.yaml"))
    with pytest.raises(ValueError, match="can't be read: (draws|mine) is listed twice .*line 1"):
        load_profile("mine")


def test_own_profile_that_is_like_no_other_is_told_so(place, monkeypatch):
    (place / "mine.yaml").write_text("mine: {draws: 3}")
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(place / "mine.yaml"))
    with pytest.raises(ValueError, match="profile 'mine' without `like` has no value for after"):
        load_profile("mine")


def test_name_of_an_own_profile_can_be_that_of_a_folder(place, monkeypatch):
    (place / "mine.yaml").write_text(f"{'n' * 300}: {{like: tiny}}")
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(place / "mine.yaml"))
    with pytest.raises(ValueError, match="name is 'nnn.* but should match pattern"):
        load_profile("n" * 300)


EXPERIMENTS = [
    ({"model": "nope"}, "'nope'", "owner/name"),
    ({"model": ""}, "''", "at least 1 character"),
    ({"criterion": "none"}, "'none'", "element1"),
    ({"criterion": "taylor"}, "'taylor'", "'element1'"),
    ({"criterion": "influence"}, "'influence'", "granularity should be 'layer'"),
    ({"criterion": "obs", "aggregation": "max"}, "'obs'", "aggregation should be 'sum'"),
    ({"criterion": "l2", "repaired": True}, "repaired", "criterion other than"),
    ({"ratio": 1}, "1", "less than 1"),
    ({"ratio": "half"}, "'half'", "a valid number"),
    ({"dependency": "no"}, "'no'", "a valid boolean"),
    ({"seed": -1}, "-1", "greater than or equal to 0"),
    ({"ration": 0.2}, "ration", "it has model, criterion"),
    ({"calibration": {"corpus": "wikki"}}, "'wikki'", "wiki"),
    ({"evaluation": {"texts": ["wikki"]}}, "'wikki'", "wiki"),
    ({"evaluation": {"tasks": ["bolq"]}}, "'bolq'", "boolq"),
    ({"recovery": {"corpus": "alpacca"}}, "'alpacca'", "alpaca"),
    ({"recovery": {"at": 3}}, "3", "one of keep_at"),
]


@pytest.mark.parametrize("case", EXPERIMENTS, ids=lambda case: str(case[0]))
def test_experiment_is_refused_before_one_of_its_list_is_run(case, place, monkeypatch):
    changes, came, wanted = case
    study = Study("tiny")
    right = study.profile.experiment(criterion="random")
    monkeypatch.setattr(Study, "_measure", lambda *_: pytest.fail("an experiment was run"))
    with pytest.raises(ValueError) as caught:
        study.run_all([right, changed(right, changes)])
    sentence = str(caught.value)
    assert came in sentence and wanted in sentence and "\n" not in sentence, sentence
    assert not list(place.iterdir())


def changed(experiment: Experiment, changes: dict) -> Experiment:
    values = experiment.settings() | {"criterion": "element1"}
    for name, value in changes.items():
        part = values.get(name) or load_profile("tiny").experiment(recovered=True).settings().get(name)
        values[name] = part | value if isinstance(value, dict) else value
    return from_plain(Experiment, values)


@pytest.mark.parametrize("wrong", [5, None, "l2", [{"model": "tiny"}]])
def test_what_is_no_experiment_is_refused(wrong, place):
    study = Study("tiny")
    with pytest.raises(ValueError, match="Experiment"):
        study.run_all(wrong)
    with pytest.raises(ValueError, match="experiment must be an Experiment"):
        study.run(wrong)


LINES = [
    (run_notebooks, ["--profile", "tyni"], "'tyni'", "there are decide"),
    (run_notebooks, ["--profile", ""], "''", "there are decide"),
    (run_notebooks, ["--profile", "tiny", "--only", "99"], "'99'", "there are 00_quickstart"),
    (run_notebooks, ["--profile", "tiny", "--only", ""], "''", "there are 00_quickstart"),
    (run_notebooks, ["--profile", "tiny", "--only", "00,"], "''", "there are 00_quickstart"),
    (run_notebooks, ["--set", "ratio"], "'ratio'", "name=value"),
    (run_notebooks, ["--set", "ratio=[1,"], "'ratio=[1,'", "name=value"),
    (run_notebooks, ["--set", "ratio=2020-99-99"], "'ratio=2020-99-99'", "name=value"),
    (run_notebooks, ["--set", f"ratio={'[' * 1500}"], "'ratio=[[[", "name=value"),
    (run_notebooks, ["--set", "ratio={a: 1}"], "'ratio={a: 1}'", "name=value"),
    (run_notebooks, ["--set", "ratio=[[1]]"], "'ratio=[[1]]'", "name=value"),
    (run_notebooks, ["--set", "ratio=!!python/name:os.system"], "os.system", "name=value"),
    (run_notebooks, ["--set", "=5"], "'=5'", "name=value"),
    (run_notebooks, ["--profile", "tiny", "--set", "ration=1"], "ration", "there are"),
    (run_notebooks, ["--profile", "tiny", "--set", "profile=quick"], "'quick'", "--profile"),
    (run_notebooks, ["--profile", "tiny", "--set", "ratio=0.3", "ratio=0.4"], "gives ratio", "once"),
    (run_notebooks, ["--profile", "tiny", "--set", "ratio=0.3", "--set", "ratio=0.3"], "gives ratio", "once"),
    (run_notebooks, ["--profile", "tiny", "--set", "ratio=0,3"], "'0,3'", "its default, 0.2"),
    (run_notebooks, ["--profile", "tiny", "--set", "ratio=yes"], "True", "its default, 0.2"),
    (run_notebooks, ["--profile", "tiny", "--set", "draws=2.5"], "2.5", "its default, 0"),
    (run_notebooks, ["--profile", "tiny", "--set", "ratios=0.3"], "0.3", "its default, []"),
    (run_notebooks, ["--profile", "tiny", "--set", "criterion=null"], "None", "its default, 'element1'"),
    (run_notebooks, ["--profile", "tiny", "--set", "model=lama"], "'lama'", "no hub id"),
    (run_notebooks, ["--profile", "tiny", "--set", "models=[tiny, lama]"], "'lama'", "no hub id"),
    (run_notebooks, ["--profile", "tiny", "--workers", "-1"], "-1", "at least 1"),
    (run_notebooks, ["--profile", "tiny", "--workers", "two"], "'two'", "int"),
    (run_notebooks, ["--profile", "tiny", "--scheduler", "nowhere"], "'nowhere'", "tcp://host:8786"),
    (run_notebooks, ["--workers", "1", "--scheduler", "tcp://a:1"], "tcp://a:1", "one of them"),
    (run_notebooks, ["--nope"], "--nope", "unrecognized"),
    (stress, ["--kills", "x"], "'x'", "invalid int value"),
    (reproduce, [], "[]", "the path or the key of one record"),
    (reproduce, ["a", "b"], "['a', 'b']", "the path or the key of one record"),
    (reproduce, ["0123"], "'0123'", "expected 1"),
    (reproduce, ["empty.json"], "empty.json", "not valid JSON"),
    (reproduce, [""], "''", "expected 1"),
]


@pytest.mark.parametrize("case", LINES, ids=lambda case: f"{case[0].__module__}-{' '.join(case[1])[:60]}")
def test_bad_command_line_ends_with_exit_code_2_and_a_sentence(case, place, capsys):
    command, words, came, wanted = case
    (place / "empty.json").touch()
    try:
        code = command(words)
    except SystemExit as stop:  # argparse, which shows the usage before its sentence
        code = stop.code
    shown = capsys.readouterr()
    sentence = shown.err.splitlines()[-1]
    assert code == 2 and "error: " in sentence and came in sentence and wanted in sentence, shown
    assert "Traceback" not in shown.err and [path.name for path in place.iterdir()] == ["empty.json"]


PLACES = [  # environment variable, its value, what is called, what is wanted
    ("PRUNER_LIB_RESULTS", "taken.txt", lambda: run_notebooks(["--profile", "tiny"]), "another folder"),
    ("PRUNER_LIB_RESULTS", "taken.txt/in", lambda: run_notebooks(["--profile", "tiny"]), "another folder"),
    ("PRUNER_LIB_RESULTS", "round", lambda: run_notebooks(["--profile", "tiny"]), "another folder"),
    ("PRUNER_LIB_DATA", "taken.txt", lambda: run_notebooks(["--profile", "tiny"]), "PRUNER_LIB_DATA"),
    ("PRUNER_LIB_DATA", "nowhere", lambda: run_notebooks(["--profile", "tiny"]), "PRUNER_LIB_DATA"),
    ("PRUNER_LIB_PROFILES", "none.yaml", lambda: run_notebooks(["--profile", "tiny"]), "PRUNER_LIB_PROFILES"),
    ("PRUNER_LIB_PROFILES", ".", lambda: run_notebooks(["--profile", "tiny"]), "PRUNER_LIB_PROFILES"),
    ("PRUNER_LIB_PROFILES", "taken.txt", lambda: run_notebooks(["--profile", "tiny"]), "PRUNER_LIB_PROFILES"),
]


@pytest.mark.parametrize("case", PLACES, ids=lambda case: f"{case[0]}={case[1]}")
def test_place_that_will_not_do_is_found_out_before_a_notebook_runs(case, place, capsys, monkeypatch):
    variable, value, command, wanted = case
    (place / "taken.txt").write_text("mine")
    (place / "round").symlink_to("round")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("a notebook ran"))
    assert command() == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and value in shown.err and wanted in shown.err, shown.err
    assert "00_quickstart" not in shown.out and (place / "taken.txt").read_text() == "mine"


def test_folder_of_data_that_is_none_is_named(place, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_DATA", "nowhere")
    study = Study("tiny")
    with pytest.raises(ValueError, match="PRUNER_LIB_DATA is 'nowhere', which is no folder; create it"):
        study.run(study.profile.experiment(criterion="random"))
    assert not results_dir("tiny").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["study", "--profile", "tiny", "--workers", "x"], "argument --workers: invalid int value: 'x'"),
        (["bench", "--only", "nope"], "no benchmark nope; there are scoring, discovery, speed, evaluation"),
    ],
)
def test_value_of_a_verb_that_will_not_do_gets_a_sentence(words, sentence):
    command = [sys.executable, "-m", "invoke", *words]
    run = subprocess.run(command, cwd=NOTEBOOKS[0].parents[1], capture_output=True, text=True)
    assert run.returncode and sentence in run.stderr.splitlines()[-1] and "Traceback" not in run.stderr
