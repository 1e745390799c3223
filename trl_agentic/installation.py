"""Command `trl-agentic env`: versions, devices, data and extras of this installation."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata

from trl_agentic import __version__


LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "vllm")
DATA = {"ALFWORLD_DATA": ("train", "valid_seen", "valid_unseen")}
"""Environment variables that name folders of released data, and the splits to count there."""


def main(argv: list[str] | None = None) -> None:
    """Prints one line per item of [`installation`]."""
    argparse.ArgumentParser(prog="trl-agentic env", description="Prints what a bug report needs.").parse_args(argv)
    for name, value in installation().items():
        print(f"{name:<16} {value}")


def installation() -> dict[str, str]:
    """Versions, devices, data and extras by name."""
    import torch

    found = {"trl-agentic": __version__, "python": f"{platform.python_version()} on {platform.platform()}"}
    found |= {name: _version(name) or "not installed" for name in LIBRARIES}
    found["GPU"] = (
        ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none that torch can use"
    )
    found |= {variable: _games(os.environ.get(variable), splits) for variable, splits in DATA.items()}
    for extra, missing in _extras().items():
        found[f"[{extra}]"] = "missing: " + ", ".join(missing) if missing else "complete"
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _games(folder: str | None, splits: tuple[str, ...]) -> str:
    if not folder:
        return "not set: games are generated"
    from trl_agentic.environments.alfworld import find_games

    counts = []
    for split in splits:
        try:
            counts.append(f"{split} {len(find_games(folder, split))}")
        except FileNotFoundError:
            counts.append(f"{split} none")
        except ValueError as error:
            counts.append(f"{split}: {error}")
    return f"{folder}: {', '.join(counts)}"


def _extras() -> dict[str, list[str]]:
    """The missing requirements of each extra; empty if the package is not installed."""
    from packaging.requirements import Requirement

    try:
        package = metadata.metadata("trl-agentic")
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(text) for text in package.get_all("Requires-Dist") or []]
    missing = {}
    for extra in package.get_all("Provides-Extra") or []:
        wanted = [
            r for r in requirements if r.marker and r.marker.evaluate({"extra": extra}) and not _is_installed(r.name)
        ]
        missing[extra] = [requirement.name for requirement in wanted]
    return missing


def _is_installed(name: str) -> bool:
    return _version(name) is not None
