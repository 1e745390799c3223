from __future__ import annotations

from pathlib import Path

import pytest

from tests.environments.webshop.shop import small_shop
from trl_agentic.environments.webshop import WebShopCatalogue


pytest.importorskip("rapidfuzz", reason="needs pip install trl-agentic[webshop]")


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> WebShopCatalogue:
    """Four products, written out in shop.py."""
    return small_shop(tmp_path_factory.mktemp("webshop"))


@pytest.fixture(scope="session")
def generated() -> WebShopCatalogue:
    """The embedded catalogue."""
    return WebShopCatalogue.generate()


@pytest.fixture(scope="session")
def official_dir(shared_dir: Path) -> Path:
    """The official 1,000-product files, beside the checkout."""
    path = shared_dir / "data" / "webshop"
    if not path.is_dir():
        pytest.skip("needs ../shared/data/webshop")
    return path


@pytest.fixture(scope="session")
def official(official_dir: Path) -> WebShopCatalogue:
    return WebShopCatalogue.from_json(official_dir)
