"""Notebooks follow the one skeleton, and every one of them runs from start to end in the tiny profile."""

from __future__ import annotations

import ast
import os
import re
import statistics
from pathlib import Path

import forked
import nbformat
import pytest
import yaml
from counts import put_counts
from in_process import NOTEBOOKS, execute
from made_notebooks import WRITE, notebook
from solutions import with_solutions

from pruner_lib.study.records import read_kept
from pruner_lib.study.results import manifest_path, results_dir

FOLDER = NOTEBOOKS[0].parent
LONGEST_CELL, MEDIAN_CELL, LONGEST_DEF, MOST_PARAMETERS = 25, 9, 15, 12  # lines, lines, lines, names
PROSE = (6, 17)  # words for each line of code
MOST_CODE = {"00": 100, "01": 150, "02": 150}  # lines without comments, of the first lectures
WIDTH = 88  # columns of code
PARAMETER = re.compile(r"[a-z_]\w*: (str|int|float|bool|list\S*) = .+  # \S.*")
MAGIC = re.compile(r"^\s*(%|!|\?)|^\s*(pip|conda) install|get_ipython\(", re.MULTILINE)
PLACE = re.compile(
    r"(?<![\w.:/*-])/(home|root|usr|tmp|mnt|work|Users|opt|var|data)/|\b[A-Z]:\\\\?[A-Za-z]|file://"
)
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)  # hints and solutions are no prose
BOLD = 5  # words: names of paragraphs and terms are bold, sentences are not
ENDINGS = ("What would change our mind", "differences", "Exercises", "Next")


def problems(path: Path) -> list[str]:
    """Say what in a notebook departs from the skeleton; an empty list is praise."""
    book = nbformat.read(path, as_version=4)
    try:
        nbformat.validate(book)
    except nbformat.ValidationError as error:
        return [f"no valid notebook: {error.message}"]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    found = [*_form(book), *_opening(path.stem, book), *_parameters(code), *_code(code), *_prose(prose, code)]
    found += _size(path.stem[:2], code)
    if not re.search(rf"finish\(\s*['\"]{path.stem}['\"]", code[-1].source):
        found.append("the last code cell does not call finish with the notebook's name")
    return found


def _form(book):
    if (book.nbformat, book.nbformat_minor) != (4, 5):
        yield f"nbformat {book.nbformat}.{book.nbformat_minor}, not 4.5"
    if book.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    for number, cell in enumerate(book.cells):
        if cell.get("outputs") or cell.get("execution_count"):
            yield f"cell {number} holds outputs"
        if place := PLACE.search(cell.source):
            yield f"cell {number} names a place of one machine: {place.group()}"


def _opening(stem, book):
    first = book.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith(f"# {stem[:2]}"):
        yield f"the first cell is no title that begins with '# {stem[:2]}'"
    table = [line.lower() for line in first.source.splitlines() if line.startswith("|")]
    if len(table) < 3 or not all(word in table[0] for word in ("claim", "run time", "gpu")):
        yield "the first cell has no table of claims with run times and GPU"
    if "?" not in first.source:
        yield "the first cell asks no question"
    heading = next((i for i, cell in enumerate(book.cells) if re.match("## ", cell.source)), len(book.cells))
    if not any("provenance(" in cell.source for cell in book.cells[:heading] if cell.cell_type == "code"):
        yield "the set-up, before the first section, has no line of provenance"


def _parameters(code):
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    if tagged != [0]:
        yield f"the cell tagged parameters must be the first code cell, and the only one; tagged are {tagged}"
        return
    lines = [line for line in code[0].source.splitlines() if line.strip()]
    if not lines[0].startswith('profile: str = "quick"  # '):
        yield 'the first parameter is not profile: str = "quick"'
    if len(lines) > MOST_PARAMETERS:
        yield f"{len(lines)} parameters"
    for line in lines:
        try:
            value = ast.parse(line).body[0].value
            flat = isinstance(ast.literal_eval(value), (str, int, float, bool, list, type(None)))
        except (SyntaxError, ValueError, AttributeError):
            flat = False
        if not flat or not PARAMETER.fullmatch(line):
            yield f"not `name: type = plain value  # meaning`: {line}"


def _code(code):
    sizes = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code]
    if max(sizes) > LONGEST_CELL:
        yield f"a code cell of {max(sizes)} lines"
    if statistics.median(sizes) > MEDIAN_CELL:
        yield f"the median code cell has {statistics.median(sizes)} lines"
    checks = 0
    for cell in code:
        if magic := MAGIC.search(cell.source):
            yield f"magic or installation: {magic.group().strip()}"
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ClassDef):
                yield f"class {node.name}"
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST_DEF:
                yield f"def {node.name} has {node.end_lineno - node.lineno + 1} lines"
            checks += isinstance(node, ast.Assert)
            if isinstance(node, ast.Assert) and node.msg is None:
                yield f"assert without a message: {ast.unparse(node)[:60]}"
    if checks < 2:
        yield f"{checks} checks"


def _size(number, code):
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    count = sum(not line.lstrip().startswith("#") for line in lines)
    if count > MOST_CODE.get(number, count):
        yield f"{count} lines of code, {MOST_CODE[number]} at most in a first lecture"
    for line in lines:
        if len(line) > WIDTH:
            yield f"{len(line)} columns: {line.strip()[:60]}"


def _prose(prose, code):
    text = FOLDED.sub("", "\n".join(prose))
    words = len(re.findall(r"[\w'’-]+", text))
    lines = sum(len([line for line in cell.source.splitlines() if line.strip()]) for cell in code)
    if not PROSE[0] <= words / lines <= PROSE[1]:
        yield f"{words / lines:.1f} words of prose a line of code"
    if text.lower().count("expect") < 3:
        yield "what we expect is said less than three times"
    for bold in re.findall(r"\*\*(.+?)\*\*", "\n".join(prose[1:])):  # the first cell asks the question
        if len(bold.split()) > BOLD:
            yield f"bold prose, which results might contradict; compute it: {bold}"
    for ending in ENDINGS:
        if ending.lower() not in text.lower():
            yield f"nothing is said under '{ending}'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_links_to_the_paper_the_code_its_numbers_and_another_notebook(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", FOLDED.sub("", text))
    starts = (
        "https://arxiv.org/abs/2305.11627",
        "../pruner_lib/",
        f"../results/quick/tables/{path.stem[:2]}_",
    )
    assert not [start for start in starts if not any(link.startswith(start) for link in links)]
    assert [link for link in links if re.fullmatch(r"\d\d_\w+\.ipynb", link) and link != path.name]
    assert not [link for link in links if "://" not in link and not (FOLDER / link).exists()]


def test_there_are_notebooks_and_their_names_have_numbers():
    assert len(NOTEBOOKS) >= 3
    assert all(re.fullmatch(r"\d\d_[a-z_]+", path.stem) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_follows_the_skeleton(path):
    assert problems(path) == []


def change(kind, old, new):
    """A fault: in the first cell of a kind that holds `old`, write `new` instead."""

    def apply(book):
        cell = next(c for c in book.cells if c.cell_type == kind and old in c.source)
        cell.source = cell.source.replace(old, new, 1)

    return apply


def add(source):
    return lambda book: book.cells.insert(4, nbformat.v4.new_code_cell(source))


def untag(book):
    for cell in book.cells:
        cell.metadata.pop("tags", None)


def numbered(book):
    next(c for c in book.cells if c.cell_type == "code").execution_count = 1


def old_format(book):
    book.nbformat_minor = 4
    for cell in book.cells:
        del cell["id"]


FAULTS = {
    "no title": (change("markdown", "# 01", "01"), "no title"),
    "no claims": (change("markdown", "claim", "idea"), "no table of claims"),
    "output left": (numbered, "holds outputs"),
    "old format": (old_format, "not 4.5"),
    "other kernel": (lambda book: book.metadata.kernelspec.update(name="julia"), "not python3"),
    "no tag": (untag, "tagged parameters"),
    "other first parameter": (
        change("code", "profile: str", "seed_2: int = 1  # a\nprofile: str"),
        "not profile",
    ),
    "parameter without meaning": (
        change("code", "layer: int = 0  #", "layer: int = 0 #"),
        "# meaning`: layer",
    ),
    "derived parameter": (change("code", "layer: int = 0", "layer: int = len(profile)"), "plain value"),
    "no provenance": (change("code", "provenance(", "print("), "no line of provenance"),
    "magic": (add("%matplotlib inline"), "magic"),
    "shell": (add("!ls"), "magic"),
    "installation": (add("pip install torch"), "magic or installation"),
    "absolute path": (add('data = "/home/somebody/data.csv"'), "place of one machine"),
    "path of Windows": (add(r'data = "C:\\data"'), "place of one machine"),
    "path in the text": (change("markdown", "# 01", "See /tmp/notes for # 01"), "place of one machine"),
    "wide line": (add("x = " + " + ".join(["1"] * 30)), "columns: x = 1"),
    "long first lecture": (
        lambda book: [add("\n".join(["x = 1"] * 8))(book) for _ in range(9)],
        "150 at most",
    ),
    "long cell": (add("\n".join(f"x{i} = {i}" for i in range(26))), "a code cell of 26 lines"),
    "long function": (
        add("def f():\n" + "    a = 1\n" * 14 + "    return a"),
        "def f",
    ),
    "class": (add("class Model:\n    pass"), "class Model"),
    "silent check": (add("assert 1 < 2"), "without a message"),
    "much code": (lambda book: [add("\n".join(["x = 1"] * 8))(book) for _ in range(60)], "words of prose"),
    "never finished": (change("code", "finish(", "print("), "does not call finish"),
    "finished as another": (change("code", 'finish("01_', 'finish("07_'), "does not call finish"),
    "finding in prose": (
        change("markdown", "## Exercises", "**The first layers hurt the most.**\n\n## Exercises"),
        "compute it",
    ),
    "no exercises": (change("markdown", "## Exercises", "## Homework"), "Exercises"),
    "sure of itself": (change("markdown", "## What would change our mind", "## Doubts"), "change our mind"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_notebook_is_found_out(fault, tmp_path):
    breaks, said = FAULTS[fault]
    book = nbformat.read(FOLDER / "01_discover_groups.ipynb", as_version=4)
    breaks(book)
    path = tmp_path / "01_discover_groups.ipynb"
    nbformat.write(book, path)
    assert any(said in problem for problem in problems(path)), problems(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Hold the results of the profile tiny, to which all tests of this file add, and stand elsewhere."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNER_LIB_RESULTS", str(folder / "results"))
        patch.chdir(folder / "elsewhere")
        put_counts(results_dir("tiny"))
        yield results_dir("tiny")


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_its_solutions_run_in_the_tiny_profile(path, tiny, tmp_path, capsys):
    """The solutions stand where they say, and assert their answers; test_paper_profile runs without them."""
    execute(with_solutions(path, tmp_path), profile="tiny")
    manifest = read_kept(manifest_path(path.stem, "tiny"))
    assert manifest["status"] == "done" and manifest["outputs"]
    kinds = {output.partition(".")[2] for output in manifest["outputs"] if output.startswith("figures/")}
    assert {"svg", "png", "csv"} <= kinds, "a figure is an SVG and a PNG beside its CSV"
    assert not list(Path.cwd().iterdir()), "something was written where we stood"


@pytest.mark.slow
@pytest.mark.notebook
def test_quickstart_by_hand_reads_what_a_profile_draws(tmp_path, monkeypatch, capsys):
    """As in `decide`, where samples and windows have seeds; the notebook compares with the record."""
    drawn = {"like": "tiny", "calibration": {"seed": 3}, "evaluation": {"seed": 1}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"drawn": drawn}))
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(tmp_path / "own.yaml"))
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    execute(FOLDER / "00_quickstart.ipynb", profile="drawn")
    assert read_kept(manifest_path("00_quickstart", "drawn"))["status"] == "done"


def papermill(tmp_path, path, *words):
    """Run papermill's command line in the profile tiny; give its exit code and what it said."""
    words, said = (str(path), os.devnull, "-p", "profile", "tiny", *words), tmp_path / "said.txt"
    process = forked.start(forked.as_program, "papermill", *words, said=said)
    process.join()
    return process.exitcode, said.read_text()


@pytest.mark.slow
@pytest.mark.notebook
def test_papermill_alone_reuses_the_records(tiny, tmp_path):
    """As on the command line: `papermill 11_generation.ipynb /dev/null -p profile tiny`."""
    path = FOLDER / "11_generation.ipynb"
    if not (tiny / "samples").is_dir():
        execute(path, profile="tiny")  # this test runs alone
    before = states(tiny / "samples") | states(tiny / "records")
    code, said = papermill(tmp_path, path, "--inject-paths")
    assert code == 0, said[-2000:]
    assert states(tiny / "samples") | states(tiny / "records") == before, "something was measured again"
    assert not list(Path.cwd().iterdir()), "something was written where we stood"


def states(folder):
    """File -> time of its last change and content."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.glob("*"))}


@pytest.mark.slow
@pytest.mark.notebook
def test_papermill_alone_refuses_a_misspelt_parameter(tiny, tmp_path):
    """In a notebook of one cell, which asks for its results as the set-up of all others does."""
    path = notebook(tmp_path, "00_made", WRITE)
    code, said = papermill(tmp_path, path, "-p", "ration", "0.5")
    assert code != 0 and "has no parameter ration; it has profile" in said
