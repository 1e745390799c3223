"""Limits on the size of files, classes and functions of the package, so that no part outgrows one reading."""

from __future__ import annotations

import ast
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
FILE_LINES = 400
FILE_LINES_OF = {"trl_agentic/trainers/base.py": 450}  # the one file that overrides methods of TRL's trainer
CLASS_METHODS = 30
FUNCTION_LINES = 60  # with docstring, without decorators

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def too_large(name: str, text: str) -> list[str]:
    """One line for each file, class and function of the source `text` that is over its limit."""
    found = []
    lines, limit = len(text.splitlines()), FILE_LINES_OF.get(name, FILE_LINES)
    if lines > limit:
        found.append(f"{name}: {lines} lines, at most {limit}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(member, FUNCTION) for member in node.body)
            if methods > CLASS_METHODS:
                found.append(f"{name}:{node.lineno} class {node.name}: {methods} methods, at most {CLASS_METHODS}")
        elif isinstance(node, FUNCTION):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{name}:{node.lineno} {node.name}(): {lines} lines, at most {FUNCTION_LINES}")
    return found


def test_nothing_in_the_package_is_too_large():
    paths = sorted((ROOT / "trl_agentic").rglob("*.py"))
    assert len(paths) > 50
    found = [line for path in paths for line in too_large(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_the_limits_are_exact():
    function = "def f():\n" + "    pass\n" * (FUNCTION_LINES - 1)
    methods = "class A:\n" + "".join(f"    def m{i}(self): ...\n" for i in range(CLASS_METHODS))
    lines = "\n" * FILE_LINES
    assert too_large("a.py", function) == too_large("a.py", methods) == too_large("a.py", lines) == []
    assert too_large("a.py", function + "    pass\n") == ["a.py:1 f(): 61 lines, at most 60"]
    assert too_large("a.py", "async " + function + "    pass\n") == ["a.py:1 f(): 61 lines, at most 60"]
    assert too_large("a.py", methods + "    async def more(self): ...\n") == ["a.py:1 class A: 31 methods, at most 30"]
    assert too_large("a.py", lines + "\n") == ["a.py: 401 lines, at most 400"]
    assert too_large("trl_agentic/trainers/base.py", "\n" * 450) == []
    assert too_large("trl_agentic/trainers/base.py", "\n" * 451) == [
        "trl_agentic/trainers/base.py: 451 lines, at most 450"
    ]
