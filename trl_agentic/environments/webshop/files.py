"""Reader of the official WebShop files. Errors name the file and the record."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .product import DEFAULT_PRICE, Product


LONGEST_ASIN = 10
NO_ATTRIBUTES = ("DUMMY_ATTR",)
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_SOURCE = "https://github.com/princeton-nlp/WebShop"


@dataclass(frozen=True)
class ShopFiles:
    """What the files say. `color_names` is `None` where there is no such file."""

    products: list[Product]
    nouns: dict[str, list[str]]
    color_names: list[str] | None


def read_shop(data_dir: str | PathLike[str], subset: str | None = None) -> ShopFiles:
    """Reads the files of a folder, as for [`WebShopCatalogue.from_json`]."""
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"WebShop data: {folder} is not a folder. {_SOURCE} says how to get the files.")
    shuffle = _find(folder, "items_shuffle", subset)
    subset = shuffle.stem.removeprefix("items_shuffle")
    instructions = _find(folder, "items_ins_v2", subset)
    records = _read(shuffle, list)
    wanted = _read(instructions, dict)
    human_file = next((p for s in (subset, "") if (p := folder / f"items_human_ins{s}.json").is_file()), None)
    human = _read(human_file, dict) if human_file else {}
    nouns_file, colors_file = folder / f"nouns{subset}.json", folder / "reward_colors.json"
    products: dict[str, Product] = {}
    repeated: list[str] = []
    for number, record in enumerate(records):
        where = f"{shuffle}, record {number}"
        asin = _text(record, "asin", where)
        if asin == "nan" or len(asin) > LONGEST_ASIN:
            continue
        if asin in products:
            repeated.append(f"record {number} ({asin})")
            continue
        about = _entry(wanted, asin, instructions)
        written = _human_instructions(human, asin, human_file)
        products[asin] = _product(record, about, written, f"{where} ({asin})", instructions)
    if repeated:
        warnings.warn(
            f"{shuffle}: left out {len(repeated)} records whose asin stands in an earlier one: "
            f"{', '.join(repeated[:3])}{' ...' if len(repeated) > 3 else ''}.",
            stacklevel=3,
        )
    if not products:
        raise ValueError(f"{shuffle} has no products.")
    return ShopFiles(
        products=list(products.values()),
        nouns=_read(nouns_file, dict) if nouns_file.is_file() else {},
        color_names=_read(colors_file, list) if colors_file.is_file() else None,
    )


def _find(folder: Path, stem: str, subset: str | None) -> Path:
    if subset is not None:
        path = folder / f"{stem}{subset}.json"
        if not path.is_file():
            raise FileNotFoundError(f"WebShop data: {path} is missing. {_SOURCE} says how to get it.")
        return path
    found = sorted(folder.glob(f"{stem}*.json"))
    if not found:
        raise FileNotFoundError(f"WebShop data: no {stem}*.json in {folder}. {_SOURCE} says how to get it.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"WebShop data: {folder} has {names}; say which with `subset`, such as '_1000' or ''.")
    return found[0]


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {'array' if kind is list else 'object'}.")
    return content


def _text(record: Any, key: str, where: str) -> str:
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be text, got {value!r}.")
    return value


def _entry(entries: Mapping[str, Any], asin: str, path: Path) -> Mapping[str, Any]:
    entry = entries.get(asin) or {}
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}, record {asin!r}: expected an object, got {entry!r:.80}.")
    return entry


def _human_instructions(human: Mapping[str, Any], asin: str, path: Path | None) -> tuple[Mapping[str, Any], ...]:
    written = human.get(asin) or ()
    for instruction in written:
        where = f"{path}, record {asin!r}"
        _text(instruction, "instruction", where)
        for key in ("instruction_attributes", "instruction_options"):
            _texts(instruction.get(key), key, where)
    return tuple(written)


def _texts(values: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{where}: {key!r} must be a list of texts, got {values!r:.80}.")
    return tuple(values)


def _product(
    record: Mapping[str, Any], about: Mapping[str, Any], written: tuple[Mapping[str, Any], ...], where: str, path: Path
) -> Product:
    asin = record["asin"]
    bullets = record.get("small_description") or ""
    instruction = about.get("instruction")
    return Product(
        asin=asin,
        title=_text(record, "name", where),
        description=record.get("full_description") or "",
        bullets=(bullets,) if isinstance(bullets, str) else _texts(bullets, "small_description", where),
        category=_text(record, "category", where),
        query=_text(record, "query", where).lower().strip(),
        product_category=_text(record, "product_category", where),
        prices=_prices(record.get("pricing"), where),
        options=_options(record.get("customization_options"), where),
        attributes=_texts(about.get("attributes", NO_ATTRIBUTES), "attributes", f"{path}, record {asin!r}"),
        instruction=instruction or None,
        instruction_attributes=_texts(
            about.get("instruction_attributes", ()), "instruction_attributes", f"{path}, record {asin!r}"
        ),
        human_instructions=written,
    )


def _prices(pricing: Any, where: str) -> tuple[float, ...]:
    """Prices as in `"$16.82 - $35.0"`; 100 dollars where there is none."""
    if not pricing:
        return (DEFAULT_PRICE,)
    found = [_NUMBER.search(part.replace(",", "")) for part in str(pricing).split("$")[1:]]
    if not found or None in found:
        raise ValueError(f"{where}: 'pricing' must be like '$5.99' or '$5.99 - $7.99', got {pricing!r:.80}.")
    return tuple(float(number.group()) for number in found[:2] if number)


def _options(options: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not options:
        return {}
    try:
        return {
            name.lower(): tuple(option["value"].strip().replace("/", " | ").lower() for option in values)
            for name, values in options.items()
            if values is not None
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: 'customization_options' must be like {{'Color': [{{'value': 'red'}}]}}, got {options!r:.80}."
        ) from error
