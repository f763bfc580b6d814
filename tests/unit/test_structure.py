import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "csi_job"
ROOMS = [
    *("radiographs", "phantoms", "storage", "cache", "trial", "html", "evaluation", "tracking", "study"),
    *("transfer", "final_model", "config", "report", "terminal"),
]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(tree: ast.AST) -> list[str]:
    found = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found + [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_left_of_it(path):
    folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    own = [name.split(".")[1] for name in imported_modules(ast.parse(path.read_text())) if name.startswith("csi_job.")]
    if folder in ROOMS:
        allowed = {*ROOMS[: ROOMS.index(folder) + 1], "errors", "files", "logs", "machine", "settings", "signals"}
        allowed |= {"work_folder", "yaml_file"}
        assert set(own) <= allowed
    if folder not in ("cli", "__main__"):
        assert "cli" not in own


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    too_long = {f.name: f.end_lineno - f.lineno for f in functions if f.end_lineno - f.lineno > MAX_FUNCTION_LINES}
    assert not too_long


def test_the_package_has_no_import_cycle():
    graph = {
        ".".join(("csi_job", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): {
            name for name in imported_modules(ast.parse(path.read_text())) if name.startswith("csi_job")
        }
        for path in MODULES
        if path.parts[-2] != "cli"
    }

    def reaches(start, name, seen):
        for target in graph.get(name, ()):
            if target == start:
                return True
            if target not in seen:
                seen.add(target)
                if reaches(start, target, seen):
                    return True
        return False

    assert [name for name in graph if reaches(name, name, set())] == []


def test_the_two_lock_files_agree():
    def pins(path):
        return {line.split(" \\")[0] for line in path.read_text().splitlines() if "==" in line and line[0].isalpha()}

    runtime, development = pins(ROOT / "image/requirements.lock"), pins(ROOT / "tests/requirements.lock")
    assert len(runtime) > 20
    assert runtime <= development


def test_the_tests_of_faults_are_where_the_docs_say():
    table = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for line in table for name in re.findall(r"`((?:[a-z/]+/)?test_[a-z_]+)`", line)}
    assert len(named) > 8
    files = {name: ROOT / "tests" / (name if "/" in name else f"faults/{name}") for name in named}
    assert [name for name, file in files.items() if not file.with_suffix(".py").is_file()] == []
