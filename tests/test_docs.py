"""The documentation runs: its Python blocks are executed, its commands name files, targets and fields that exist.

A block that cannot run here says so in an HTML comment on the line before it:

    <!-- needs: gpu -->        a GPU, or several
    <!-- needs: hub -->        a download from the model hub
    <!-- needs: index -->      a package index
    <!-- needs: data -->       files that the reader must bring
    <!-- fragment -->          a signature or a sketch, not a program

Commands without such a comment must be run by `.ci/run`.
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import trl_agentic
from trl_agentic import cli


ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"gpu", "hub", "index", "data"}
# Models that the pages name, and the tiny architecture that stands in for each.
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
PYTHON_PAGES = sorted({block.page for block in BLOCKS if block.language == "python" and not block.needs})


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The blocks of a page run one after the other, as a reader would paste them.

    Trainings stop after two steps; without a GPU, configs get what README tells CPU readers to add.
    """
    import torch

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python" or block.needs:
            continue
        source = re.sub(r"\bmax_steps=\d+", "max_steps=2", block.body)
        if not torch.cuda.is_available():
            source = re.sub(r"(\w+Config)\(", r"\1(use_cpu=True, bf16=False, ", source)
        for model, arch in MODELS.items():
            if model in source:
                source = source.replace(model, str(tiny_model_dir(arch)))
        exec(compile(source, str(block), "exec"), namespace)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and b.needs], ids=str)
def test_python_blocks_that_cannot_run_compile(block: Block):
    compile(block.body, str(block), "exec")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_name_what_exists(block: Block):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(block.body):
        words = [word for word in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words[0] == "trl-agentic":
            assert words[1] in cli.COMMANDS or " ".join(words[1:3]) in cli.COMMANDS, f"no such command: {command}"
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"no such target: {command}"
        for option, value in zip(words, words[1:], strict=False):
            if option in ("--config", "--config_file"):
                assert (ROOT / value).is_file(), f"{value} does not exist: {command}"
        for word in words:
            if re.fullmatch(r"(recipes|examples|benchmarks|tests|docs)/[\w/.-]+", word):
                assert (ROOT / word).exists(), f"{word} does not exist: {command}"


@pytest.mark.parametrize("block", [block for block in SHELL if not block.needs], ids=str)
def test_commands_are_run_in_ci(block: Block):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in commands(block.body):
        assert command in script, f"neither run by .ci/run nor marked with what it needs: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"].partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", ["GAGPO", "A2TGPO"])
def test_the_table_of_a_method_names_the_fields_and_defaults_of_its_config(name: str):
    config = getattr(trl_agentic, f"{name}Config")
    fields = config.__dataclass_fields__
    page = (ROOT / "docs" / f"{name.lower()}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [\d-]+ \|.*\| `(?P<field>\w+)` \| `(?P<default>[^`]+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 10
    for field, default in rows:
        assert fields[field].default == ast.literal_eval(default), f"the page on {name} about {field}"
    named = {field for field, _ in rows}
    own = set(config.__annotations__) - {"learning_rate"}
    assert own <= named, f"the page on {name} lacks {sorted(own - named)}"


PRESETS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_presets_parse_against_the_arguments_of_their_recipe(preset: Path, monkeypatch: pytest.MonkeyPatch):
    """`recipes/configs/NAME/*.yaml` belong to `recipes/NAME.py`, which reads its arguments with `TrlParser`."""
    from trl import TrlParser

    class Captured(Exception):
        pass

    def capture(parser: TrlParser, *args: object, **kwargs: object) -> None:
        raise Captured(parser)

    recipe = ROOT / "recipes" / f"{preset.parent.name}.py"
    monkeypatch.setattr(sys, "argv", [str(recipe), "--config", str(preset)])
    monkeypatch.syspath_prepend(str(recipe.parent))  # as for a script that is run
    with monkeypatch.context() as patched:
        patched.setattr(TrlParser, "parse_args_and_config", capture)
        with pytest.raises(Captured) as captured:
            runpy.run_path(str(recipe), run_name="__main__")
    (parser,) = captured.value.args
    # The overrides let a preset for GPUs be read without one; a key that no dataclass has is an error.
    parser.parse_args_and_config(args=["--config", str(preset), "--use_cpu", "true", "--bf16", "false"])


def public_names() -> list[tuple[str, str]]:
    """(module, name) of what users may rely on: `__all__`, or what a public module defines."""
    from tests.test_imports import PUBLIC_MODULES

    found = []
    for module in ("trl_agentic", *(f"trl_agentic.{name}" for name in PUBLIC_MODULES), "trl_agentic.records"):
        members = vars(import_module(module))
        own = [name for name, value in members.items() if getattr(value, "__module__", None) == module]
        found += [(module, name) for name in members.get("__all__", own) if not name.startswith("_")]
    return found


@pytest.mark.parametrize(("module", "name"), public_names(), ids=lambda text: text)
def test_every_public_name_has_a_docstring_and_a_place_in_the_reference(module: str, name: str):
    """A page has it by itself, or all of a module that offers it."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    value = getattr(import_module(module), name)
    home = getattr(value, "__module__", module)
    offered = {place for place, other in public_names() if other == name}
    assert {f"{home}.{name}", home, module, *offered} & shown, f"no page of docs/api shows {module}.{name}"
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), f"{module}.{name} has no docstring"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert [page for page in pages if f" {page}\n" not in navigation] == []


def test_the_table_of_what_is_tested_is_current():
    from tests.coverage_table import with_table

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme) == readme, "run python tests/coverage_table.py"
    assert readme.count("| transformers") >= 12


def test_readme_names_every_trainer_and_its_paper():
    import trl_agentic

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Algorithms")[2].partition("\n## ")[0]
    for name in trl_agentic.__all__:
        if name.endswith("Trainer") and name != "AgenticTrainer":
            (row,) = re.findall(rf"^\| `{name}` \| .* \|$", table, re.MULTILINE)[:1]
            assert getattr(trl_agentic, name)._paper["id"] in row


RULE_PAGES = {"gigpo": "GiGPO", "grpo": "AgenticGRPO", "rloo": "AgenticRLOO", "igpo": "IGPO"}


@pytest.mark.parametrize("page", RULE_PAGES)
def test_the_table_of_an_algorithm_names_fields_defaults_and_metrics(page: str):
    import trl_agentic

    fields = getattr(trl_agentic, f"{RULE_PAGES[page]}Config").__dataclass_fields__
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in f"{line} ".split(" |")] for line in text.splitlines() if line.startswith("| ")][
        2:
    ]
    assert len(rows) >= 3
    metrics = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    metrics += (ROOT / "trl_agentic" / "trainers" / "gain.py").read_text(encoding="utf-8")
    checked = 0
    for row in rows:
        names = re.findall(r"`(\w+)`", row[1])
        for name in names:
            assert name in fields, f"docs/{page}.md: {name} is no field"
        default = re.fullmatch(r"`([^`]+)`", row[2])
        if default and len(names) == 1:
            assert fields[names[0]].default == ast.literal_eval(default[1]), f"docs/{page}.md on {names[0]}"
            checked += 1
        for metric in re.findall(r"`([\w/]+)`", row[3]):
            assert metric in metrics or metric == "loss", (
                f"docs/{page}.md: {metric} is not defined in docs/concepts.md"
            )
    assert checked >= 2
