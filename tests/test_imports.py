"""Who may import what. The rules keep the credit functions pure, and the package cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "trl_agentic"

# The first prefix that fits a module decides which modules of the package it may import. A prefix stands for the
# module and everything below it. "." is the module's own folder.
RULES = ("gagpo", "a2tgpo", "gigpo", "igpo", "grpo", "rloo")
MAY_IMPORT: list[tuple[str, tuple[str, ...]]] = [
    ("types", ()),
    ("credit", ("credit", "types")),
    ("loss", ("types",)),
    ("turns", ("types",)),
    ("records", ("types",)),
    ("micro_batches", ()),
    ("serving", ()),
    ("information_gain", ("types", "turns")),
    ("rollout", ("rollout", "types", "turns", "environments.base")),
    ("environments.base", ("types",)),
    ("environments.tools", ("types", "environments.base")),
    ("environments.prompts", ("types",)),
    ("environments.", (".", "types", "environments.base", "environments.prompts")),
    *(
        (f"trainers.{rule}", ("types", "credit", "loss", "trainers.base", "trainers.config", "trainers.information_gain"))
        for rule in RULES
    ),
    (
        "trainers.",  # the base trainer and what it is made of: all but concrete environments
        (
            "types",
            "credit",
            "loss",
            "turns",
            "micro_batches",
            "information_gain",
            "rollout",
            "environments.base",
            "environments.handle",
            "environments.tools",
            "records",
            "serving",
            "trainers",
            "__version__",
        ),
    ),
    ("evaluation", ("evaluation", "types", "records", "rollout", "environments")),
    ("viewer", ("viewer", "records")),
]
# Third-party libraries that only some parts may load.
ONLY_IN = {
    "trl": ("trainers", "environments.tools"),
    "transformers": ("trainers", "rollout", "information_gain", "environments.tools", "evaluation"),
    "accelerate": ("trainers", "evaluation"),
    "datasets": ("trainers", "environments.search"),
    "bm25s": ("environments.search",),
    "faiss": ("environments.search",),
    "requests": ("environments.search", "environments.webshop.site", "rollout.engines.vllm_server", "trainers.vllm_preflight"),
    "vllm": ("rollout.engines.vllm_colocate", "trainers.base"),
    "sentence_transformers": ("environments.search",),
    "rapidfuzz": ("environments.webshop",),
    "spacy": ("environments.webshop",),
    "pyarrow": ("records",),
    "textworld": ("environments.alfworld",),
    "alfworld": ("environments.alfworld",),
    "matplotlib": ("viewer",),
}
# What recipes and examples may use beside the names of `trl_agentic` itself; of a package, the names in its `__all__`.
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


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_inside_the_package_follow_the_rules(path: Path):
    name = module_name(path).removeprefix(PACKAGE).removeprefix(".")
    allowed = next((rule for prefix, rule in MAY_IMPORT if within(name, prefix) or name.startswith(prefix)), None)
    if allowed is None or (path.name == "__init__.py" and name in ("", "environments", "trainers")):
        return  # a module without a rule, or one whose business is to gather names
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for module, imported in imports(path):
        if not within(module, PACKAGE):
            continue
        target = module.removeprefix(PACKAGE).removeprefix(".")
        candidates = [
            target,
            f"{target}.{imported}".removeprefix("."),
        ]  # `from trl_agentic import types` names a module
        prefixes = [folder if prefix == "." else prefix for prefix in allowed]
        assert any(within(candidate, prefix) for candidate in candidates for prefix in prefixes), (
            f"{PACKAGE}.{name} imports {module} ({imported}); it may import {prefixes}"
        )


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_libraries_are_imported_only_where_they_belong(path: Path):
    name = module_name(path).removeprefix(PACKAGE).removeprefix(".")
    for module, _ in imports(path):
        library = module.partition(".")[0]
        homes = ONLY_IN.get(library)
        assert homes is None or any(within(name, home) for home in homes), (
            f"{PACKAGE}.{name} imports {library}, which belongs to {homes}"
        )


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_base_trainer_touches_private_names_of_trl(path: Path):
    if module_name(path) == f"{PACKAGE}.trainers.base":
        return
    for module, imported in imports(path):
        if module.partition(".")[0] in ("trl", "transformers"):
            private = [part for part in [*module.split("."), imported or ""] if part.startswith("_")]
            assert not private, f"{module_name(path)} imports {private} of {module}"


SCRIPTS = sorted(path for folder in ("recipes", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_recipes_and_examples_use_public_names_only(path: Path):
    import trl_agentic

    for module, imported in imports(path):
        if module == PACKAGE:
            assert imported in (*trl_agentic.__all__, *PUBLIC_MODULES, "__version__"), f"{imported} is not public"
        elif within(module, PACKAGE):
            assert module.removeprefix(PACKAGE + ".") in PUBLIC_MODULES, f"{module} is not public"
            names = getattr(import_module(module), "__all__", None)
            assert imported is not None
            assert not imported.startswith("_"), f"{module}.{imported} is private"
            assert names is None or imported in names, f"{imported} is not in {module}.__all__"


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, trl_agentic; print(*sorted({'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_a_process_that_runs_an_environment_loads_no_torch():
    modules = "trl_agentic.environments.handle, trl_agentic.environments.alfworld.env, trl_agentic.environments.search"
    code = f"import sys, {modules}; print(*sorted({{'torch', 'transformers', 'trl', 'datasets'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_every_public_name_resolves():
    import trl_agentic

    for name in trl_agentic.__all__:
        assert getattr(trl_agentic, name) is not None
        assert name in dir(trl_agentic)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trl_agentic.nonsense  # noqa: B018


def test_the_lazy_names_are_those_that_type_checkers_see():
    import trl_agentic

    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(home, name) for name, home in trl_agentic._HOME_OF.items()}
    assert sorted(trl_agentic.__all__) == sorted(trl_agentic._HOME_OF)
