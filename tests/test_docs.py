"""The examples of the README and of docs/ run, and the pages build.

Of docs/ every fenced block that says ``python`` is run, page by page, from top to bottom in one
namespace, in an empty folder. A block that cannot run says so in the line above it:
``<!-- skip: next "why" -->``. Of the README its Python blocks are run as they stand, indented or
fenced.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import SkipTest

import pytest
from mpi import GUARD

sybil = pytest.importorskip("sybil")
from sybil.evaluators.python import PythonEvaluator  # noqa: E402
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402
from sybil.region import Lexeme, Region  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
ELSEWHERE = ("new_physics",)  # run, with a look at its results, by tests/test_new_physics.py
# what the examples of a page need beside the package
NEEDS = {"own_data": ["dipy"], "own_mesh": ["gmsh"], "user_guide": ["gmsh"]}


def indented_python(document):
    """Indented blocks of a document that are Python: those that parse, unlike shell commands."""
    for match in re.finditer(r"(?<=\n\n)(?:(?: {4}.*)?\n)+", document.text):
        text = textwrap.dedent(match[0])
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        if tree.body:
            yield Region(match.start(), match.end(), Lexeme(text, 0, 0), PythonEvaluator())


def run(path: Path, parsers, folder: Path, monkeypatch) -> int:
    """Evaluate the examples of a page in order; how many ran."""
    document = sybil.Sybil(parsers=parsers, path=str(ROOT)).parse(path)
    monkeypatch.chdir(folder)
    ran = 0
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
        ran += isinstance(example.parsed, str)
    return ran


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()
                                  and p.stem not in ELSEWHERE], ids=lambda p: p.stem)
def test_page(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    assert run(page, [PythonCodeBlockParser(), SkipParser()], tmp_path, monkeypatch)


@pytest.mark.slow  # a search for shapes
def test_readme(tmp_path, monkeypatch):
    pytest.importorskip("gmsh")
    parsers = [PythonCodeBlockParser(), SkipParser(), indented_python]
    assert run(ROOT / "README.md", parsers, tmp_path, monkeypatch) >= 3


def test_links_between_pages():
    """Links to files of the repository lead somewhere."""
    for page in [*PAGES, *ROOT.glob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


TABLES = ROOT / "benchmarks" / "tables.py"


def test_tables_are_those_of_the_result_files():
    done = subprocess.run([sys.executable, TABLES, "--check"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tables_of_runs_join_the_result_files(tmp_path, monkeypatch):
    """Rows of a benchmark replace those of the same case; others and their sources stay."""
    spec = importlib.util.spec_from_file_location("tables", TABLES)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    heads = ("target,target_mesh,acquisition,boundary,snr,method,seed,status,misfit,true_misfit,"
             "aligned_f1,cpu_seconds,peak_mb\n")
    old = [f"{name},grid,published,absorbing,inf,default,0,ok,1e-3,1e-15,0.5,100.4,9\n"
           for name in ("018_sphere_10r_in_grid_20x20", "sphere")]
    new = ["sphere,grid,published,absorbing,inf,default,0,ok,1e-9,1e-15,1.0,50,9\n",
           "sphere,grid,rich,absorbing,inf,default,0,failed,,,,,\n"]
    for commit, rows, more in (("aaa", old, ""), ("bbb", new, ", two runs at a time")):
        (tmp_path / "table.csv").write_text(heads + "".join(rows))
        tables.add("mine", tmp_path, {"command": "spinverse benchmark", "commit": commit,
                                      "date": "2026-11-29", "machine": tables.MACHINE + more})
    head, _, first, second, third, said = (
        line for line in tables.render("mine boundary=absorbing").splitlines() if line)
    assert head == "| target | SNR | method | misfit | true misfit | aligned F1 | CPU s | status |"
    assert first == "| 018 sphere | inf | default | 1.000e-03 | 1.000e-15 | 0.500 | 100 | ok |"
    assert second == "| sphere | inf | default | 1.000e-09 | 1.000e-15 | 1.000 | 50 | ok |"
    assert third == "| sphere, acquisition rich | inf | default | - | - | - | - | failed |"
    assert said == ("commit aaa, 2026-11-29, `spinverse benchmark`; "
                    "commit bbb, 2026-11-29, two runs at a time, `spinverse benchmark`")
    assert "| absorbing | inf | default | 3 | 1 | 0.750 | 75 |" in tables.render("mine means")


def test_pages_build_without_warnings(tmp_path):
    for package in ("sphinx", "myst_parser", "furo", "latex2mathml"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
         "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.returncode == 0, done.stderr
    theory = (tmp_path / "html" / "theory.html").read_text()
    assert theory.count("<math") > 50


def test_imports_follow_the_map_of_rooms():
    """No module imports from a room below its own in the developer guide's table."""
    guide = (ROOT / "docs" / "developer.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?: `\w+`)*) \|", guide, re.MULTILINE)
    level = {room: k for k, row in enumerate(rows) for room in re.findall(r"\w+", row)}
    package = ROOT / "spinverse"
    there = {path.stem for path in package.iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    assert set(level) == there, "a room is missing in the table, or gone"
    wrong = [f"{file.relative_to(ROOT)} imports {other}"
             for file in package.rglob("*.py") if file.parent != package or file.stem in level
             for other in imported_rooms(file, package)
             if level[other] > level[file.relative_to(package).with_suffix("").parts[0]]]
    assert wrong == []


def imported_rooms(file: Path, package: Path) -> set[str]:
    parts = file.relative_to(package).parts
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        absolute = (node.module or "").split(".")
        if node.level:
            above = list(parts[: len(parts) - node.level])
            found += [above + absolute] if absolute != [""] else [
                above + [alias.name] for alias in node.names]
        elif absolute[0] == "spinverse":
            found += [absolute[1:]] if absolute[1:] else [[a.name] for a in node.names]
    rooms = {path[0] for path in found}
    return {room for room in rooms
            if (package / f"{room}.py").exists() or (package / room).is_dir()}
