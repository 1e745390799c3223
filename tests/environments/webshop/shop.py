"""A shop of four products for the tests, as official files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_agentic.environments.webshop import WebShopCatalogue


def option(*values: str) -> list[dict[str, str]]:
    return [{"value": value, "image": ""} for value in values]


def record(asin: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "asin": asin,
        "name": name,
        "full_description": "",
        "pricing": "$25.0",
        "small_description": [],
        "customization_options": "",
        "product_category": "Home \u203a Kitchen \u203a Mugs",
        "category": "garden",
        "query": "mugs",
        **more,
    }


RECORDS = [
    record(
        "B000000001",
        "Blue Clay Mug",
        full_description="A mug for tea.",
        small_description=["Hand made & glazed ", "Dishwasher safe "],
        customization_options={"Size": option("Small", " 12/14 oz "), "Color": option("Dark Blue", "White")},
    ),
    record("B000000002", "Tall Glass", pricing="", query="glasses", product_category="Home \u203a Bar \u203a Glasses"),
    record("B000000003", "Red Clay Mug", pricing="$19.5 - $35.25", customization_options={"Color": None}),
    record("B000000004", "Garden Hose", query="hoses", product_category="Garden \u203a Hoses"),
]
INSTRUCTIONS = {
    "B000000001": {
        "attributes": ["hand made", "dishwasher safe"],
        "instruction": "Find me hand made mugs",
        "instruction_attributes": ["hand made"],
    },
    "B000000002": {"attributes": []},
}
HUMAN = {
    "B000000001": [
        {
            "instruction": "i want a small blue mug.",
            "instruction_attributes": ["hand made"],
            "instruction_options": ["small", "dark blue"],
        },
        {"instruction": "any mug", "instruction_attributes": [], "instruction_options": []},
    ]
}
NOUNS = {
    "Blue Clay Mug": ["clay", "mug"],
    "Red Clay Mug": ["clay", "mug"],
    "Tall Glass": ["glass"],
    "Garden Hose": ["garden", "hose"],
    "8 x 10": [],
}


def write_shop(folder: Path, **contents: Any) -> Path:
    """Writes the files. `records`, `instructions`, `human`, `nouns`: instead of the above; `None` leaves one out."""
    files = {
        "items_shuffle": contents.get("records", RECORDS),
        "items_ins_v2": contents.get("instructions", INSTRUCTIONS),
        "items_human_ins": contents.get("human", HUMAN),
        "nouns": contents.get("nouns", NOUNS),
    }
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def small_shop(folder: Path, **contents: Any) -> WebShopCatalogue:
    return WebShopCatalogue.from_json(write_shop(folder, **contents))


@lru_cache(maxsize=1)
def shop_of_stand_in() -> WebShopCatalogue:
    """The shop that stands in for upstream's."""
    return WebShopCatalogue.generate(400)
