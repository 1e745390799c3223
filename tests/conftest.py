"""Fixtures of the whole suite. The environment is set before torch or transformers is imported by any test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is loaded

# A busy machine must not turn a slow example into a failure.
hypothesis.settings.register_profile(
    "suite", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model_dir(arch="qwen3", **sizes)` -> folder with a tiny random model and its tokenizer, built once."""
    built: dict[tuple[object, ...], Path] = {}

    def build(arch: str = "qwen3", **sizes: int) -> Path:
        from tests.tiny_model import build_tiny_model

        key = (arch, *sorted(sizes.items()))
        if key not in built:
            built[key] = build_tiny_model(tmp_path_factory.mktemp(f"tiny-{arch}"), arch, **sizes)
        return built[key]

    return build


@pytest.fixture(autouse=True)
def seeded_torch(request: pytest.FixtureRequest) -> None:
    """Every test starts with the same random numbers: pytest-randomly seeds `random` and numpy, and this torch."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(request.config.getoption("randomly_seed", 0))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with recorded upstream traces, next to the checkout; tests that need it skip where it is missing."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs the recorded traces in ../shared/data")
    return path
