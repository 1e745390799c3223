"""What a user installs: the wheel, the versions it asks for, the launch configurations."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trl_agentic


ROOT = Path(__file__).resolve().parent.parent
LAUNCH_CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines()]


def test_launch_configurations_load():
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = {}
    for path in LAUNCH_CONFIGS:
        config = load_config_from_file(str(path))
        version = {
            "FSDP": lambda config: config.fsdp_config["fsdp_version"],
            "DEEPSPEED": lambda config: config.deepspeed_config["zero_stage"],
        }.get(config.distributed_type, lambda config: None)(config)
        loaded[path.stem] = (config.distributed_type, version, config.num_processes, config.use_cpu)
    assert loaded == {
        "cpu": ("NO", None, 1, True),
        "single_gpu": ("NO", None, 1, False),
        "ddp": ("MULTI_GPU", None, 8, False),
        "fsdp2": ("FSDP", 2, 8, False),
        "fsdp2_multinode": ("FSDP", 2, 16, False),
        "deepspeed_zero2": ("DEEPSPEED", 2, 8, False),
        "deepspeed_zero3": ("DEEPSPEED", 3, 8, False),
    }


def test_constraints_satisfy_the_declared_requirements():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonicalize_name(name)] = version
    assert re.fullmatch(r"[0-9.]+", pinned["torch"]), "a local suffix would shut out the CPU or the CUDA build"
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]

    config = metadata()
    declared = requirements(config["options"]["install_requires"])
    for extra, lines in config["options.extras_require"].items():
        if extra != "vllm":  # brings a torch of its own choice, so it is not part of the tested set
            declared += requirements(lines)
    missing = {requirement.name for requirement in declared if canonicalize_name(requirement.name) not in pinned}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"
    excluded = [
        f"{requirement} excludes {version}"
        for requirement in declared
        for version in [pinned[canonicalize_name(requirement.name)]]
        if not requirement.specifier.contains(version, prereleases=True)
    ]
    assert not excluded, "\n" + "\n".join(excluded)


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == trl_agentic.__version__


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "trl_agentic", source / "trl_agentic", ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "recipes" / "accelerate", source / "recipes" / "accelerate")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        header = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()

    expected = {str(path.relative_to(source)) for path in (source / "trl_agentic").rglob("*") if path.is_file()}
    assert "trl_agentic/py.typed" in expected
    assert expected - names == set(), "left out: a folder without __init__.py, or data outside a `data` folder"
    assert not [name for name in names if name.startswith(("tests", "recipes", "benchmarks"))]
    shared = {name.rpartition("/")[2] for name in names if ".data/data/share/trl-agentic/accelerate/" in name}
    assert shared == {path.name for path in LAUNCH_CONFIGS}
    assert f"Version: {trl_agentic.__version__}\n" in header
    assert sum(size.file_size for size in zipfile.ZipFile(wheel).infolist()) < 30e6
    for extra in metadata()["options.extras_require"]:
        assert f"Provides-Extra: {extra}\n" in header
