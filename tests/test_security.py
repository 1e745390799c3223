"""Checks of the threat model in docs/security.md that ruff's rules `S` and `TID251` cannot express."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("trl_agentic", "recipes", "examples", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def is_constant(value: ast.expr | None, expected: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is expected


def violations(text: str) -> Iterator[str]:
    """`LINE: REASON` for every call that turns data into code, and for every suppressed security rule."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"noqa(?!:)|noqa:.*\b(S\d|TID251)", line):
            yield f"{number}: suppresses a security rule; exceptions are listed in pyproject.toml"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if name in ("compile", "__import__"):
            yield f"{node.lineno}: calls {name}"
        for keyword in ("trust_remote_code", "allow_pickle"):
            if is_constant(keywords.get(keyword), True):
                yield f"{node.lineno}: {name}({keyword}=True)"
        if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            yield f"{node.lineno}: torch.load without weights_only=True"


def test_no_code_comes_out_of_data():
    assert len(SOURCES) > 100
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in violations(path.read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_the_check_finds_what_it_forbids():
    assert list(violations("torch.load(f, weights_only=True)\nf(trust_remote_code=False)\nx = []  # noqa: E501")) == []
    for bad in (
        "compile('1', '', 'eval')",
        "__import__('os')",
        "f(trust_remote_code=True)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(text)  # noqa: S307",
        "import pickle  # noqa: E402, TID251",
        "eval(text)  # noqa",
    ):
        assert len(list(violations(bad))) == 1, bad


def test_ruff_checks_security_everywhere_but_in_tests():
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert {"S", "TID251"} <= set(lint["select"])
    exceptions = {
        path: [code for code in codes if code.startswith(("S", "TID"))]
        for path, codes in lint["per-file-ignores"].items()
        if path != "tests/**"
    }
    # One module unpickles: messages between a trainer and the processes that it started, over a private pipe.
    assert exceptions == {
        "trl_agentic/environments/workers.py": ["S301", "TID251"],
        "trl_agentic/serving.py": ["S606"],
    }


def test_remote_code_is_not_trusted_by_default():
    from trl_agentic import AgenticConfig

    assert AgenticConfig.__dataclass_fields__["trust_remote_code"].default is False
