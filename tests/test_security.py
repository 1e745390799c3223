"""What the threat model in docs/security.md promises of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("trl_agentic", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# The one place that unpickles: messages between a trainer and the processes that it started, over a private pipe.
MAY_PICKLE = {"trl_agentic/environments/workers.py"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "commands.getoutput", "subprocess.getoutput", "subprocess.getstatusoutput"}


def calls(path: Path) -> Iterator[tuple[str, dict[str, ast.expr], int]]:
    """Name, keyword arguments and line of every call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg}, node.lineno


def is_constant(value: ast.expr | None, expected: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is expected


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_comes_out_of_data(path: Path):
    name = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom) and name not in MAY_PICKLE:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not UNPICKLERS & {module.partition(".")[0] for module in modules}, f"{name}:{node.lineno}"
    for function, keywords, line in calls(path):
        where = f"{name}:{line} calls {function}"
        assert function not in {"eval", "exec", "compile", "__import__"}, where
        assert function not in SHELLS, where
        assert not is_constant(keywords.get("shell"), True), where
        assert not is_constant(keywords.get("trust_remote_code"), True), where
        assert not is_constant(keywords.get("allow_pickle"), True), where
        if function == "torch.load":
            assert is_constant(keywords.get("weights_only"), True), where
        assert function not in {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}, where


def test_the_rule_finds_what_it_forbids(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nos.system('x')\nf(shell=True)\n")
    found = list(calls(bad))
    assert [name for name, _, _ in found] == ["os.system", "f"]
    assert is_constant(found[1][1]["shell"], True)


def test_remote_code_is_not_trusted_by_default():
    from trl_agentic import AgenticConfig

    assert AgenticConfig.__dataclass_fields__["trust_remote_code"].default is False
