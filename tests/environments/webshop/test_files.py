"""Reading the official files: what is allowed to be missing, and how broken ones are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.environments.webshop.shop import HUMAN, INSTRUCTIONS, RECORDS, option, record, small_shop, write_shop
from trl_agentic.environments.webshop import WebShopCatalogue


def test_products(catalogue: WebShopCatalogue):
    mug, glass, red, _ = catalogue.products
    assert mug.options == {"size": ("small", "12 | 14 oz"), "color": ("dark blue", "white")}
    assert mug.bullets == ("Hand made & glazed ", "Dishwasher safe ")
    assert mug.searchable_text == (
        "blue clay mug a mug for tea. hand made & glazed  size: small, 12 | 14 oz, and color: dark blue, white"
    )
    assert (mug.price_tag, glass.price_tag, red.price_tag) == ("$25.0", "$100.0", "$19.5 to $35.25")
    assert (glass.attributes, red.attributes) == ((), ("DUMMY_ATTR",))
    assert red.options == {}
    assert catalogue.price(glass) == 100.0
    assert catalogue.product("b000000003") is red
    assert catalogue.product("b9") is None


@pytest.mark.parametrize(
    ("pricing", "prices"),
    [
        ("", (100.0,)),
        (None, (100.0,)),
        ("$1,234.50", (1234.5,)),
        ("$5", (5.0,)),
        ("$7.5 - $2.25 - $9", (7.5, 2.25)),
    ],
)
def test_prices(tmp_path: Path, pricing: Any, prices: tuple[float, ...]):
    assert small_shop(tmp_path, records=[record("B1", "Mug", pricing=pricing)]).products[0].prices == prices


def test_missing_parts_of_a_product(tmp_path: Path):
    bare = {key: RECORDS[0][key] for key in ("asin", "name", "query", "category", "product_category")}
    (product,) = small_shop(tmp_path, records=[bare], instructions={}).products
    assert (product.description, product.bullets, product.options, product.prices) == ("", ("",), {}, (100.0,))


def test_records_that_upstream_leaves_out_too(tmp_path: Path):
    records = [record("nan", "No number"), record("B0000000012", "Eleven signs"), record("B1", "Mug")]
    assert [product.asin for product in small_shop(tmp_path, records=records).products] == ["B1"]


def test_repeated_numbers_are_named(tmp_path: Path):
    records = [record("B1", "First"), record("B2", "Other"), record("B1", "Second")]
    with pytest.warns(UserWarning, match=r"items_shuffle.json: left out 1 records .* record 2 \(B1\)"):
        shop = small_shop(tmp_path, records=records)
    assert [product.title for product in shop.products] == ["First", "Other"]


@pytest.mark.parametrize("name", ["items_shuffle", "items_ins_v2"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    write_shop(tmp_path)
    (tmp_path / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=name):
        WebShopCatalogue.from_json(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        WebShopCatalogue.from_json(tmp_path / "nowhere")


def test_several_sets_in_one_folder(tmp_path: Path):
    write_shop(tmp_path)
    (tmp_path / "items_shuffle_1000.json").write_text(json.dumps(RECORDS[:1]))
    (tmp_path / "items_ins_v2_1000.json").write_text(json.dumps(INSTRUCTIONS))
    with pytest.raises(ValueError, match="items_shuffle.json, items_shuffle_1000.json; say which with `subset`"):
        WebShopCatalogue.from_json(tmp_path)
    assert len(WebShopCatalogue.from_json(tmp_path, subset="")) == 4
    part = WebShopCatalogue.from_json(tmp_path, subset="_1000")
    assert len(part) == 1
    assert len(part.goals(human=True)) == 1  # there is one file of these for all sets
    with pytest.raises(FileNotFoundError, match="items_shuffle_7.json is missing"):
        WebShopCatalogue.from_json(tmp_path, subset="_7")


@pytest.mark.parametrize("name", ["items_shuffle", "items_ins_v2", "items_human_ins", "nouns"])
@pytest.mark.parametrize("content", ['[{"asin": "B1", "na', "", '"text"'])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str):
    write_shop(tmp_path)
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.json (is not complete JSON|must hold a JSON)"):
        WebShopCatalogue.from_json(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, r"record 1 \(B2\): 'name' must be text, got None"),
        ({"asin": 7}, r"record 1: 'asin' must be text, got 7"),
        ({"query": 3}, r"record 1 \(B2\): 'query' must be text"),
        ({"product_category": None}, r"record 1 \(B2\): 'product_category' must be text"),
        ({"pricing": "cheap"}, r"record 1 \(B2\): 'pricing' must be like '\$5.99'"),
        ({"pricing": "$ - $"}, r"record 1 \(B2\): 'pricing' must be like"),
        ({"small_description": [1]}, r"record 1 \(B2\): 'small_description' must be a list of texts"),
        ({"customization_options": {"Size": ["small"]}}, r"record 1 \(B2\): 'customization_options' must be like"),
        (
            {"customization_options": {"Size": [{"name": "x"}]}},
            r"record 1 \(B2\): 'customization_options' must be like",
        ),
        ({"customization_options": ["x"]}, r"record 1 \(B2\): 'customization_options' must be like"),
    ],
)
def test_a_broken_product_is_named(tmp_path: Path, change: dict[str, Any], message: str):
    records = [record("B1", "Mug"), {**record("B2", "Cup"), **change}]
    with pytest.raises(ValueError, match=f"items_shuffle.json, {message}"):
        small_shop(tmp_path, records=records)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"records": []}, "items_shuffle.json has no products"),
        ({"records": ["x"]}, r"items_shuffle.json, record 0: 'asin' must be text"),
        ({"instructions": {"B000000001": 3}}, r"items_ins_v2.json, record 'B000000001': expected an object"),
        (
            {"instructions": {"B000000001": {"attributes": "x"}}},
            r"items_ins_v2.json, record 'B000000001': 'attributes'",
        ),
        (
            {"human": {"B000000001": [{"instruction": "x"}]}},
            r"items_human_ins.json, record 'B000000001': 'instruction_at",
        ),
        ({"human": {"B000000001": [3]}}, r"items_human_ins.json, record 'B000000001': 'instruction' must be text"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, contents: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        small_shop(tmp_path, **contents)


def test_color_names_beside_the_data(tmp_path: Path):
    write_shop(tmp_path)
    assert "blue" in WebShopCatalogue.from_json(tmp_path).color_names
    (tmp_path / "reward_colors.json").write_text('["dark", "white"]')
    assert WebShopCatalogue.from_json(tmp_path).color_names == ("dark", "white")
    assert WebShopCatalogue.from_json(tmp_path, color_names=["red"]).color_names == ("red",)


def test_an_empty_option_list_leaves_no_goal(tmp_path: Path):
    records = [record("B000000001", "Mug", customization_options={"Size": [], "Color": option("red")})]
    shop = small_shop(tmp_path, records=records, human=HUMAN)
    with pytest.raises(ValueError, match="there are no goals"):
        shop.goals()
    assert len(shop.goals(human=True)) == 1


class TestNouns:
    def test_known_ones_are_used(self, catalogue: WebShopCatalogue):
        assert catalogue.nouns("Blue Clay Mug") == ("clay", "mug")

    def test_without_a_parser_all_words_count_and_a_warning_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        from trl_agentic.environments.webshop import nouns

        monkeypatch.setitem(__import__("sys").modules, "spacy", None)
        nouns._spacy.cache_clear()
        shop = small_shop(tmp_path, nouns=None)
        with pytest.warns(UserWarning, match="All words of a title count as nouns. .* 3% of all others"):
            assert shop.nouns("The Blue Mug, 12oz for TEA!") == ("blue", "mug", "oz", "tea")
        nouns._spacy.cache_clear()
