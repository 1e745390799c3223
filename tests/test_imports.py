"""Imports at run time, and public and private names. Contracts in pyproject.toml say which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import trl_agentic


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "trl_agentic"
# What recipes and examples may use in addition to the names of `trl_agentic` itself; of a package, only the names in
# its `__all__`.
PUBLIC_MODULES = (
    "types",
    "credit",
    "loss",
    "information_gain",
    "rollout",
    "environments",
    "environments.alfworld",
    "environments.webshop",
    "environments.search",
    "evaluation",
    "viewer",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[str, str | None]]:
    """(module, imported name or `None`) of every import statement, relative ones resolved, type-only ones included."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found += [(base, alias.name) for alias in node.names]
    return found


def loaded_by(modules: str, watched: set[str]) -> set[str]:
    """Those of the `watched` modules that a new process has loaded after `import modules`."""
    code = f"import sys, {modules}; print(*sorted({watched!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_only_the_base_trainer_imports_private_names_of_trl():
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert len(paths) > 50
    found = [
        f"{module_name(path)} imports {imported or module} of {module}"
        for path in paths
        if module_name(path) != f"{PACKAGE}.trainers.base"
        for module, imported in imports(path)
        if module.partition(".")[0] in ("trl", "transformers")
        and any(part.startswith("_") for part in [*module.split("."), imported or ""])
    ]
    assert not found, "\n" + "\n".join(found)


def problem_of(module: str, imported: str | None) -> str | None:
    """Why a recipe or an example may not import this, or `None` if it may."""
    if module == PACKAGE:
        public = (*trl_agentic.__all__, *PUBLIC_MODULES, "__version__")
        return None if imported in public else f"trl_agentic.{imported} is not public"
    if not module.startswith(PACKAGE + "."):
        return None
    if module.removeprefix(PACKAGE + ".") not in PUBLIC_MODULES:
        return f"{module} is not public"
    if imported is None or imported.startswith("_"):
        return f"{module}.{imported} is not a public name"
    names = getattr(import_module(module), "__all__", None)
    return None if names is None or imported in names else f"{imported} is not in {module}.__all__"


def test_recipes_and_examples_use_public_names_only():
    scripts = sorted(path for folder in ("recipes", "examples") for path in (ROOT / folder).rglob("*.py"))
    assert len(scripts) > 5
    found = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in scripts
        for module, imported in imports(path)
        if (problem := problem_of(module, imported)) is not None
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_check_of_public_names_finds_what_it_forbids():
    assert problem_of("trl_agentic", "GAGPOTrainer") is None
    assert problem_of("trl_agentic.types", "Turn") is None
    assert problem_of("torch.nn", "Module") is None
    assert problem_of("trl_agentic", "cli") is not None
    assert problem_of("trl_agentic.trainers.base", "AgenticTrainer") is not None
    assert problem_of("trl_agentic.types", "_private") is not None
    assert problem_of("trl_agentic.types", None) is not None
    assert problem_of("trl_agentic.rollout", "chat") is not None


def test_importing_the_package_loads_no_heavy_library():
    assert loaded_by("trl_agentic", {"torch", "transformers", "trl", "numpy"}) == set()


def test_a_process_that_runs_an_environment_loads_no_torch():
    modules = "trl_agentic.environments.handle, trl_agentic.environments.alfworld.env, trl_agentic.environments.search"
    assert loaded_by(modules, {"torch", "transformers", "trl", "datasets"}) == set()
    assert loaded_by("trl_agentic.types, json", {"json", "torch"}) == {"json"}


def test_every_public_name_resolves():
    missing = [name for name in trl_agentic.__all__ if getattr(trl_agentic, name, None) is None]
    assert not missing
    assert set(trl_agentic.__all__) <= set(dir(trl_agentic))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trl_agentic.nonsense  # noqa: B018


def test_the_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(trl_agentic.__all__)
    for name, module in seen.items():
        assert module is not None
        assert getattr(trl_agentic, name) is getattr(import_module(module), name)
