"""Command line: commands are found, imported when used, and fail with a sentence."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import trl_agentic
from trl_agentic import cli
from trl_agentic.evaluation.command import environment_factory, main, parser


ROOT = Path(__file__).resolve().parent.parent
PLAIN = ["--environment", "alfworld", "split=valid_unseen", "num_games=2", "max_steps=4", "action_format=plain"]


def test_no_command_is_imported_before_it_is_used():
    code = "import sys, trl_agentic.cli; print(*sorted({'torch', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_function_and_a_help(name: str, capsys: pytest.CaptureFixture[str]):
    module, _, function = cli.COMMANDS[name][0].partition(":")
    assert callable(getattr(import_module(module), function))
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert f"trl-agentic {name}" in capsys.readouterr().out


def test_the_console_script_is_declared():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "trl-agentic = trl_agentic.cli:main" in config["options.entry_points"]["console_scripts"]


def test_an_environment_in_a_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_corridor.py").write_text("from tests.toys import Corridor\n\n\nclass Own(Corridor):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert type(environment_factory("own_corridor:Own")()).__name__ == "Own"


def test_a_command_may_have_two_words(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    monkeypatch.setitem(cli.COMMANDS, "shop serve", (f"{__name__}:remember", "a test"))
    monkeypatch.setattr(sys.modules[__name__], "remember", seen.append, raising=False)
    cli.main(["shop", "serve", "--port", "1"])
    assert seen == [["--port", "1"]]


def test_an_unknown_command_is_reported(capsys: pytest.CaptureFixture[str]):
    for words, message in (([], "a command is needed"), (["evalute"], "choose a command: evaluate, ")):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == trl_agentic.__version__


def test_env_reports_versions_and_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import torch

    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    cli.main(["env"])
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["torch"] == torch.__version__
    assert printed["trl-agentic"] == trl_agentic.__version__
    assert printed["ALFWORLD_DATA"] == f"{tmp_path}: train none, valid_seen none, valid_unseen none"


def test_evaluate_prints_and_saves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cli.main(["evaluate", "random", *PLAIN, "--output_dir", str(tmp_path), "--max_turns", "3", "--samples", "2"])
    assert "| All | 2 |" in capsys.readouterr().out
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["environment"] == "alfworld split=valid_unseen num_games=2 max_steps=4 action_format=plain"
    assert settings["max_turns"] == 3
    assert (tmp_path / "trajectories.parquet").stat().st_size > 0


def test_a_custom_environment_is_a_callable_and_a_file_of_tasks(tmp_path: Path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"game": 1}\n\n{"game": 0}\n')
    main(["random", "--environment", "trl_agentic.environments.alfworld:ALFWorldEnv", "max_steps=2", "num_games=2",
          "--tasks", str(tasks), "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["tasks"] == 2


def test_options_of_an_environment_are_json_or_text():
    environment = environment_factory("alfworld", "split=valid_seen", "show_admissible=false", "num_games=3",
                                      "instructions=")()  # fmt: skip
    assert (environment.split, environment.show_admissible, len(environment)) == ("valid_seen", False, 3)
    assert environment.instructions == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["small", "--environment", "tests.toys:Corridor"],
            "The package ships no small policy for tests.toys:Corridor",
        ),
        (
            ["random", "--environment", "alfwrld"],
            "must be alfworld, search, webshop or MODULE:CALLABLE, got 'alfwrld'",
        ),
        (["random", "--environment", "no_such_module:Env"], "No module named 'no_such_module'"),
        (["random", "--environment", "alfworld", "splitt=train"], "unexpected keyword argument 'splitt'"),
        (["random", "--environment", "alfworld", "split"], "'split' is not KEY=VALUE"),
        (["random", "--environment", "alfworld", "split=test"], "`split` must be one of"),
        (["random", "--environment", "tests.toys:OneTurn"], "OneTurn has no method `tasks`: name a file"),
        (["random", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["small", "--samples", "2"], "needs a --temperature above 0"),
        (["http://localhost:1/v1"], "--model NAME"),
    ],
)
def test_bad_arguments_are_reported_in_a_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output_dir", str(tmp_path)])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_the_help_names_every_environment():
    text = parser().format_help()
    assert "alfworld" in text and "MODULE:CALLABLE" in text


def test_a_missing_extra_is_reported_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit) as ended:
        main(["http://localhost:1/v1", "--model", "agent", *PLAIN, "--output_dir", str(tmp_path)])
    assert ended.value.code == 1
    assert "pip install 'trl-agentic[endpoint]'" in capsys.readouterr().err
