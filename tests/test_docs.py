"""Tests of the documentation: Python blocks run, and commands, links and tables name what exists.

Every test checks all pages and lists all offenders in its failure message. A block that cannot run in the tests is
marked by an HTML comment on the line before it:

    <!-- needs: gpu -->        a GPU, or several
    <!-- needs: hub -->        a download from the model hub
    <!-- needs: index -->      a package index
    <!-- needs: data -->       files that the reader must provide
    <!-- fragment -->          a signature or a sketch, not a program

`.ci/run` must run all commands without such a comment.
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import trl_agentic
from trl_agentic import cli


ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"gpu", "hub", "index", "data"}
# Models that the pages name, and the tiny architecture that replaces each of them.
MODELS = {"Qwen/Qwen2.5-0.5B-Instruct": "qwen2", "Qwen/Qwen2.5-1.5B-Instruct": "qwen2", "Qwen/Qwen3-0.6B": "qwen3"}

FENCE = re.compile(r"(?P<before>[^\n]*)\n+```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!-- (?:needs: (?P<needs>[\w, ]+)|(?P<fragment>fragment)) -->")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    body: str
    needs: frozenset[str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.body.strip().splitlines()[0][:50]}"


def blocks(page: Path) -> Iterator[Block]:
    for match in FENCE.finditer("\n\n" + page.read_text(encoding="utf-8")):
        comment = COMMENT.fullmatch(match["before"].strip())
        needs = frozenset[str]()
        if comment:
            needs = frozenset({"fragment"} if comment["fragment"] else re.split(r"[, ]+", comment["needs"]))
            assert needs <= NEEDS | {"fragment"}, f"{page.name} marks a block with unknown needs {sorted(needs)}"
        yield Block(page, match["language"], match["body"], needs)


def commands(body: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", "", body)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "console")]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def no_problems(problems: Iterable[str]) -> None:
    """Fails with the list of all problems, if there are any."""
    problems = list(problems)
    assert not problems, "\n" + "\n".join(problems)


def raise_all(message: str, errors: Sequence[Exception]) -> None:
    """Raises the errors of several pages or presets together, each with its traceback and its note."""
    if errors:
        raise ExceptionGroup(f"{message}: " + ", ".join(note for e in errors for note in e.__notes__), errors)


def adapted_source(block: Block, tiny_model_dir: Callable[..., Path]) -> str:
    """The block with two training steps, tiny models and, without a GPU, the arguments that README gives for CPUs."""
    import torch

    source = re.sub(r"\bmax_steps=\d+", "max_steps=2", block.body)
    if not torch.cuda.is_available():
        source = re.sub(r"(\w+Config)\(", r"\1(use_cpu=True, bf16=False, ", source)
    for model, arch in MODELS.items():
        if model in source:
            source = source.replace(model, str(tiny_model_dir(arch)))
    return source


def test_python_blocks_run(tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page run one after the other in one namespace and an empty folder, as a reader runs them."""
    errors = []
    for number, page in enumerate(sorted({block.page for block in PYTHON if not block.needs})):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        namespace: dict[str, object] = {"__name__": "__main__"}
        try:
            for block in PYTHON:
                if block.page == page and not block.needs:
                    exec(compile(adapted_source(block, tiny_model_dir), str(block), "exec"), namespace)
        except Exception as error:
            error.add_note(str(page.relative_to(ROOT)))
            errors.append(error)
    raise_all("pages whose blocks fail", errors)


def test_python_blocks_that_cannot_run_compile():
    errors = []
    for block in PYTHON:
        if block.needs:
            try:
                compile(block.body, str(block), "exec")
            except SyntaxError as error:
                error.add_note(str(block))
                errors.append(error)
    raise_all("blocks that do not compile", errors)


def missing_targets(block: Block, targets: set[str]) -> Iterator[str]:
    for command in commands(block.body):
        words = [word for word in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words[0] == "trl-agentic" and words[1] not in cli.COMMANDS and " ".join(words[1:3]) not in cli.COMMANDS:
            yield f"{block.page.name}: no such command: {command}"
        if words[0] == "make" and not set(words[1:]) <= targets:
            yield f"{block.page.name}: no such target: {command}"
        for option, value in zip(words, words[1:], strict=False):
            if option in ("--config", "--config_file") and not (ROOT / value).is_file():
                yield f"{block.page.name}: {value} does not exist: {command}"
        for word in words:
            if re.fullmatch(r"(recipes|examples|benchmarks|tests|docs)/[\w/.-]+", word) and not (ROOT / word).exists():
                yield f"{block.page.name}: {word} does not exist: {command}"


def test_commands_name_what_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    no_problems(problem for block in SHELL for problem in missing_targets(block, targets))


def test_commands_are_run_in_ci():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    no_problems(
        f"{block.page.name}: neither run by .ci/run nor marked with its needs: {command}"
        for block in SHELL
        if not block.needs
        for command in commands(block.body)
        if command not in script
    )


def test_links_and_paths_inside_the_repository_exist():
    problems = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in LINK.finditer(text):
            target = match["target"].partition("#")[0]
            external = "://" in target or target.startswith("mailto:")
            if target and not external and not (page.parent / target).exists():
                problems.append(f"{page.name} links to {target}")
        for path in re.findall(r"`((?:recipes|examples|benchmarks|tests)/[\w/.-]+)`", text):
            if not (ROOT / path).exists():
                problems.append(f"{page.name} names {path}, which does not exist")
    no_problems(problems)


def test_tables_of_the_papers_name_fields_and_defaults():
    """The step-by-step tables of GAGPO and A2TGPO have every field of their config, with its default."""
    problems = []
    for name in ("GAGPO", "A2TGPO"):
        config = getattr(trl_agentic, f"{name}Config")
        page = (ROOT / "docs" / f"{name.lower()}.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| [\d-]+ \|.*\| `(?P<field>\w+)` \| `(?P<default>[^`]+)` \|$", page, re.MULTILINE)
        assert len(rows) >= 10
        for field, default in rows:
            if config.__dataclass_fields__[field].default != ast.literal_eval(default):
                problems.append(f"the page on {name}: default of {field}")
        lacking = set(config.__annotations__) - {"learning_rate"} - {field for field, _ in rows}
        problems += [f"the page on {name} lacks {field}" for field in sorted(lacking)]
    no_problems(problems)


def check_preset(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses a preset with the `TrlParser` of its recipe; fails for a key that no dataclass has."""
    from trl import TrlParser

    class Captured(Exception):
        pass

    def capture(parser: TrlParser, *args: object, **kwargs: object) -> None:
        raise Captured(parser)

    recipe = ROOT / "recipes" / f"{preset.parent.name}.py"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [str(recipe), "--config", str(preset)])
        patched.syspath_prepend(str(recipe.parent))  # as for a script that is run
        patched.setattr(TrlParser, "parse_args_and_config", capture)
        with pytest.raises(Captured) as captured:
            runpy.run_path(str(recipe), run_name="__main__")
    (parser,) = captured.value.args
    # The overrides let a preset for GPUs be parsed without one.
    parser.parse_args_and_config(args=["--config", str(preset), "--use_cpu", "true", "--bf16", "false"])


def test_presets_parse_against_the_arguments_of_their_recipe(monkeypatch: pytest.MonkeyPatch):
    """`recipes/configs/NAME/*.yaml` are presets of `recipes/NAME.py`, which parses its arguments with `TrlParser`."""
    presets = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    assert len(presets) >= 10
    errors = []
    for preset in presets:
        try:
            check_preset(preset, monkeypatch)
        except Exception as error:
            error.add_note(f"{preset.parent.name}/{preset.name}")
            errors.append(error)
    raise_all("presets that do not parse", errors)


def public_names() -> list[tuple[str, str]]:
    """(module, name) of the public interface: `__all__`, or the names that a public module defines."""
    from tests.test_imports import PUBLIC_MODULES

    found = []
    for module in ("trl_agentic", *(f"trl_agentic.{name}" for name in PUBLIC_MODULES), "trl_agentic.records"):
        members = vars(import_module(module))
        own = [name for name, value in members.items() if getattr(value, "__module__", None) == module]
        found += [(module, name) for name in members.get("__all__", own) if not name.startswith("_")]
    return found


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference():
    """A page shows the name itself, or all names of a module that offers it."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    names = public_names()
    problems = []
    for module, name in names:
        value = getattr(import_module(module), name)
        home = getattr(value, "__module__", module)
        offered = {place for place, other in names if other == name}
        if not {f"{home}.{name}", home, module, *offered} & shown:
            problems.append(f"no page of docs/api shows {module}.{name}")
        if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
            problems.append(f"{module}.{name} has no docstring")
    assert len(names) >= 50
    no_problems(problems)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in sorted((ROOT / "docs").rglob("*.md"))]
    no_problems(page for page in pages if f" {page}\n" not in navigation)


def test_the_table_of_tested_combinations_is_current():
    from tests.coverage_table import with_table

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme) == readme, "run python tests/coverage_table.py"
    assert readme.count("| transformers") >= 12


def test_readme_names_every_trainer_and_its_paper():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Algorithms")[2].partition("\n## ")[0]
    problems = []
    for name in trl_agentic.__all__:
        if name.endswith("Trainer") and name != "AgenticTrainer":
            rows = re.findall(rf"^\| `{name}` \| .* \|$", table, re.MULTILINE)
            if not rows or getattr(trl_agentic, name)._paper["id"] not in rows[0]:
                problems.append(f"{name} or its paper is not in the table")
    no_problems(problems)


ALGORITHM_PAGES = {"gigpo": "GiGPO", "grpo": "AgenticGRPO", "rloo": "AgenticRLOO", "igpo": "IGPO"}


def problems_of_algorithm_page(page: str, metrics: str) -> Iterator[str]:
    fields = getattr(trl_agentic, f"{ALGORITHM_PAGES[page]}Config").__dataclass_fields__
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in f"{line} ".split(" |")] for line in table][2:]
    assert len(rows) >= 3
    checked = 0
    for row in rows:
        names = re.findall(r"`(\w+)`", row[1])
        yield from (f"docs/{page}.md: {name} is not a field" for name in names if name not in fields)
        default = re.fullmatch(r"`([^`]+)`", row[2])
        if default and len(names) == 1:
            if fields[names[0]].default != ast.literal_eval(default[1]):
                yield f"docs/{page}.md: default of {names[0]}"
            checked += 1
        for metric in re.findall(r"`([\w/]+)`", row[3]):
            if f"`{metric}`" not in metrics and metric != "loss":
                yield f"docs/{page}.md: docs do not define {metric}"
    assert checked >= 2


def test_tables_of_the_algorithms_name_fields_defaults_and_metrics():
    metrics = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("concepts.md", "a2tgpo.md"))
    no_problems(problem for page in ALGORITHM_PAGES for problem in problems_of_algorithm_page(page, metrics))


def test_information_gain_metrics_of_the_docs_are_logged():
    page = (ROOT / "docs" / "a2tgpo.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(information_gain/\w+|clip_range/\w+)`", page))
    assert len(named) >= 6
    trainers = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "trl_agentic" / "trainers").rglob("*.py"))
    no_problems(f"docs/a2tgpo.md: no trainer logs {name}" for name in sorted(named) if f'"{name}"' not in trainers)
