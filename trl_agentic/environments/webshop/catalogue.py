"""Catalogue of the shop: products, the search over them and the goals made from them. Read-only after construction."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from os import PathLike

from .goals import human_goals, synthetic_goals
from .nouns import Nouns
from .product import Product
from .reward import Goal, Reward, has_attribute, matched_options, same_category, title_score, type_factor
from .search import SearchIndex


RESULTS = 50
DEFAULT_PRICE_SEED = 5
COLOR_NAMES = tuple(
    "amber aqua beige black blue bronze brown burgundy charcoal copper coral cream crimson cyan gold gray green grey "
    "indigo ivory khaki lavender lilac lime magenta maroon mint mustard navy olive orange peach pink plum purple red "
    "rose rust sand scarlet silver tan taupe teal turquoise violet white wine yellow".split()
)
"""Default colours that the reward reads from an option, in the order in which they are tried."""


class WebShopCatalogue:
    """Products, their search index and the goals made from them. Made once, shared by all environments of a process.

    Args:
        products (`Sequence[Product]`): in the order of the shop's files; no number may occur twice.
        nouns (`Callable`): the nouns of a title, in lower case, as often as they occur.
        color_names (`Sequence[str]`, *optional*): colours that the reward reads from an option, in the order that they
            are tried. Defaults to `COLOR_NAMES`.
        price_seed (`int`, *optional*, defaults to `5`): seed of the prices that are drawn: those of products with two,
            and the limits in goals.

    Raises:
        ValueError: two products have one number, or there are none.

    Example:

    ```python
    >>> catalogue = WebShopCatalogue.from_json("data")
    >>> [product.title for product in catalogue.search("console table")][:2]
    >>> catalogue.goals()[0].instruction
    ```
    """

    def __init__(
        self,
        products: Sequence[Product],
        nouns: Callable[[str], Sequence[str]],
        color_names: Sequence[str] | None = None,
        price_seed: int = DEFAULT_PRICE_SEED,
    ) -> None:
        if not products:
            raise ValueError("A WebShopCatalogue needs at least one product.")
        self.products = tuple(products)
        self.nouns = nouns
        self.color_names = COLOR_NAMES if color_names is None else tuple(color_names)
        self.price_seed = price_seed
        self._numbers = {product.asin.lower(): number for number, product in enumerate(self.products)}
        if len(self._numbers) < len(self.products):
            raise ValueError("Two products of a WebShopCatalogue have the same number (asin).")
        draw = random.Random(price_seed)
        self.prices = tuple(p.prices[0] if len(p.prices) == 1 else draw.uniform(*p.prices) for p in self.products)
        self._after_prices = draw.getstate()
        # Where two documents score the same, the shop shows them in the order of their numbers.
        self._order = sorted(range(len(self.products)), key=lambda number: self.products[number].asin)
        self._index = SearchIndex(self.products[number].searchable_text for number in self._order)

    @classmethod
    def from_json(
        cls,
        data_dir: str | PathLike[str],
        color_names: Sequence[str] | None = None,
        subset: str | None = None,
        price_seed: int = DEFAULT_PRICE_SEED,
    ) -> WebShopCatalogue:
        """Reads the official files `items_shuffle*.json`, `items_ins_v2*.json` and, if any, `items_human_ins*.json`.

        Args:
            data_dir (`str` or `os.PathLike`): their folder. Two more files are used where they are there:
                `nouns*.json` (title to its nouns, so that nothing needs to be parsed) and `reward_colors.json`.
            color_names (`Sequence[str]`, *optional*): as above. Defaults to the list in `reward_colors.json`.
            subset (`str`, *optional*): text in place of `*`: `"_1000"`, or `""` for all products. Needed if the folder
                has several.
            price_seed (`int`, *optional*, defaults to `5`): as above.

        Raises:
            FileNotFoundError: a file is missing. The message says which and how to get it.
            ValueError: a file is broken. The message names it and the record.
        """
        from .files import read_shop

        shop = read_shop(data_dir, subset)
        return cls(
            shop.products, Nouns(shop.nouns), shop.color_names if color_names is None else color_names, price_seed
        )

    @classmethod
    def generate(cls, count: int = 1000, seed: int = 0) -> WebShopCatalogue:
        """A shop made up from a seed, with nothing to download. Arguments as for [`generate_products`]."""
        from .generator import generate_products

        products, nouns = generate_products(count, seed)
        return cls(products, Nouns(nouns), price_seed=seed)

    def __len__(self) -> int:
        """Number of products."""
        return len(self.products)

    def product(self, asin: str) -> Product | None:
        """The product of that number, in upper or lower case; `None` if there is none."""
        number = self._numbers.get(asin.lower())
        return None if number is None else self.products[number]

    def price(self, product: Product) -> float:
        """Price of the product in this shop, in dollars."""
        return self.prices[self._numbers[product.asin.lower()]]

    def search(self, query: str) -> tuple[Product, ...]:
        """Products that the shop finds for a query.

        Args:
            query (`str`): words, of which the best 50 products are found. After `<a>`, `<c>` or `<q>`: all products
                with that attribute, department or query. `<r>`: 50 products at random, the same ones for a query.

        Returns:
            `tuple[Product, ...]`: best first; for the marked queries in the order of the catalogue.
        """
        mark, _, rest = query.partition(" ")
        if mark == "<r>":
            numbers = random.Random(query).sample(range(len(self)), min(RESULTS, len(self)))
            return tuple(self.products[number] for number in numbers)
        if mark in ("<a>", "<c>", "<q>"):
            return self._listed[mark].get(rest.strip(), ())
        return tuple(self.products[self._order[found]] for found in self._index.search(query, RESULTS))

    @cached_property
    def _listed(self) -> dict[str, dict[str, tuple[Product, ...]]]:
        """The products of each attribute, department and query; kept once for all searches."""
        listed: dict[str, dict[str, list[Product]]] = {"<a>": {}, "<c>": {}, "<q>": {}}
        for product in self.products:
            for attribute in dict.fromkeys(product.attributes):
                listed["<a>"].setdefault(attribute, []).append(product)
            listed["<c>"].setdefault(product.category, []).append(product)
            listed["<q>"].setdefault(product.query, []).append(product)
        return {mark: {key: tuple(found) for key, found in keys.items()} for mark, keys in listed.items()}

    def goals(self, human: bool = False) -> tuple[Goal, ...]:
        """The goals in the order that their numbers count: first 500 for tests, the next 1,000 for evaluation.

        Args:
            human (`bool`, *optional*, defaults to `False`): goals that people wrote instead of those made from every
                combination of a product's options.

        Raises:
            ValueError: no product has such a goal.
        """
        found = self._human_goals if human else self._synthetic_goals
        if not found:
            source = "instructions that people wrote" if human else "an instruction"
            raise ValueError(f"None of the {len(self)} products has {source}: there are no goals.")
        return found

    @cached_property
    def _synthetic_goals(self) -> tuple[Goal, ...]:
        return synthetic_goals(self.products, self.prices, self._after_prices)

    @cached_property
    def _human_goals(self) -> tuple[Goal, ...]:
        return human_goals(self.products, self.prices, self._after_prices)

    def reward(self, goal: Goal, product: Product, chosen: Iterable[str] = ()) -> Reward:
        """What buying `product` with the option values `chosen` is worth.

        Args:
            goal ([`Goal`]): what was wanted.
            product ([`Product`]): what was bought.
            chosen (`Iterable[str]`, *optional*): values of its options.
        """
        texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
        score = title_score(self.nouns(product.title), self.nouns(goal.name))
        query = product.query == goal.query
        category = same_category(product.product_category, goal.product_category)
        return Reward(
            type_factor=type_factor(query, category, score),
            same_query=query,
            same_category=category,
            title_score=score,
            attributes=tuple(has_attribute(wanted, product.attributes, texts) for wanted in goal.attributes),
            options=matched_options(chosen, goal.options, self.color_names),
            price=self.price(product) <= goal.price_upper,
        )

    def best_purchase(self, goal: Goal, product: Product | None = None) -> tuple[float, dict[str, str]]:
        """The highest reward that a product can earn, and the options to choose for it.

        For the goal's own product it is 1, except where the reward does not recognise an option that it has:
        `darkblue` is brought to `blue`, which is no word of the goal.

        Args:
            goal ([`Goal`]): what is wanted.
            product ([`Product`], *optional*): what is bought. Defaults to the product that the goal was made from.

        Raises:
            ValueError: the goal's product is not in this catalogue.
        """
        product = product or self.product(goal.asin)
        if product is None:
            raise ValueError(f"The goal's product {goal.asin!r} is not in this catalogue of {len(self)} products.")
        wanted = {value if isinstance(value, str) else value[1] for value in goal.options}
        own = {product.option_of[value]: value for value in wanted if value in product.option_of}
        total = self.reward(goal, product, own.values()).total
        if total == 1.0:
            return total, own
        # For each combination of options that are matched, one choice that matches them; the wanted values come first.
        reached: dict[frozenset[int], dict[str, str]] = {frozenset(): {}}
        for name, values in product.options.items():
            kinds: dict[frozenset[int], str] = {}
            for value in sorted(values, key=lambda value: value not in wanted):
                if product.option_of[value] == name:
                    matches = matched_options([value], goal.options, self.color_names)
                    kinds.setdefault(frozenset(i for i, match in enumerate(matches) if match), value)
            for already, choice in list(reached.items()):
                for more, value in kinds.items():
                    reached.setdefault(already | more, {**choice, name: value})
        best = max(reached, key=len)
        return self.reward(goal, product, reached[best].values()).total, reached[best]
