"""WebShop as an environment: goals by number, the policy's answers parsed, rewards paid."""

from __future__ import annotations

import json
import operator
import os
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, SupportsIndex

from trl_agentic.deprecation import renamed_option
from trl_agentic.environments.prompts import ADMISSIBLE, read_answer
from trl_agentic.options import check_choice
from trl_agentic.types import StepResult

from .catalogue import WebShopCatalogue
from .engine import WebShopEngine, WebShopState
from .goals import SPLITS, split_numbers
from .oracle import RandomShopper, Shopper
from .pages import Mode
from .reward import Goal
from .site import UpstreamSiteEngine
from .upstream import UpstreamWebShopEngine


INSTRUCTIONS = {
    "plain": "You buy a product in a shop. Answer with search[words] or click[text] and nothing else.",
    "tags": (
        "You shop for a customer, whose wish stands on every page. Each message shows the page that your last action "
        "led to. There are two actions: search[words] looks for products, and click[text] follows a link, chooses an "
        "option or presses a button of the page. Choose the options that the customer asks for before you click "
        "[Buy Now], which ends the shopping.\n"
        "First think inside <think> </think> about what is still to be done. Then give one action inside <action> "
        "</action>, for example:\n"
        "<think>The customer wants a blue mug, so I look for mugs.</think>\n<action>search[blue mug]</action>"
    ),
}
"""The system prompts of the two action formats."""


class Ceiling(NamedTuple):
    """What the products that a split's goals were made from can earn.

    Attributes:
        score: mean of the highest rewards.
        success: share of the goals for which it is 1.
    """

    score: float
    success: float


class WebShopEnv:
    """Shopping in text: find the product that a customer describes, choose its options, buy it.

    Without `data_dir` the shop is made up ([`generate_products`]); with it, it is that of the official files. A shop
    is made once per process and shared by all instances.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"test"` (the first 500 goals), `"eval"` (the next 1,000) or
            `"train"` (the rest).
        data_dir (`str` or `os.PathLike`, *optional*): folder of official files, as for [`WebShopCatalogue.from_json`].
        subset (`str`, *optional*): which of them, where the folder has several: `"_1000"`, or `""` for all products.
        num_products (`int`, *optional*, defaults to `1000`): number of made-up products; with the backend `"upstream"`
            which of its search indexes, `None` for that of all products.
        seed (`int`, *optional*): seed of the made-up products (0 if `None`) and of the prices that are drawn.
        human_goals (`bool`, *optional*, defaults to `False`): goals that people wrote instead of those made from the
            options of the products. Needs `data_dir` or upstream.
        num_goals (`int`, *optional*): number of goals, of which the first ones are taken; all of the split if `None`.
            Needed for a web site, which does not report how many it has.
        mode (`str`, *optional*, defaults to `"text"`): how a page reads, as for [`WebShopEngine`].
        max_steps (`int`, *optional*, defaults to `15`): steps after which an episode is truncated.
        show_admissible (`bool`, *optional*, defaults to `True`): list the admissible actions below each page.
        action_format (`str`, *optional*, defaults to `"tags"`): how the policy's answer is read. `"tags"`: the action
            is the text of the first `<action>...</action>`, in lower case. Without one, the last 30 characters are the
            action and the answer is invalid, as it is without `<think>...</think>` or with Chinese characters.
            `"plain"`: the whole answer, without surrounding white space, is the action.
        reward_mode (`str`, *optional*, defaults to `"success"`): `"success"` pays `success_reward` for a purchase that
            scores 1 and nothing for any other; `"score"` pays `success_reward` times the score.
        success_reward (`float`, *optional*, defaults to `10.0`): as above.
        anchor_options (`bool`, *optional*, defaults to `True`): whether the state for grouping includes the options
            that were chosen. The page in `"text"` mode does not show them, so that without this an item's page is one
            state before and after a choice.
        backend (`str`, *optional*, defaults to `"engine"`): `"engine"`; `"upstream"` for the original WebShop and
            its data in the folder `$WEBSHOP_PATH` ([`UpstreamWebShopEngine`]); or the address of the original's web
            site, such as `"http://127.0.0.1:3000"` ([`UpstreamSiteEngine`]).
        instructions (`str`, *optional*): system prompt in the rows of [`tasks`], instead of the one that
            `INSTRUCTIONS` has for `action_format`. With `""` the rows have no system prompt.
        paid_for (`str`, *optional*): deprecated name of `reward_mode`.

    Raises:
        ValueError: an option has another value than those above, the split is empty, or a data file is broken.
        FileNotFoundError: a data file is missing.

    Example:

    ```python
    >>> env = WebShopEnv(split="test", action_format="plain")
    >>> print(env.reset(goal=0))
    >>> env.step("search[desk lamp]").info["admissible_actions"]
    ```
    """

    def __init__(
        self,
        split: str = "train",
        data_dir: str | os.PathLike[str] | None = None,
        subset: str | None = None,
        num_products: int | None = 1000,
        seed: int | None = None,
        human_goals: bool = False,
        num_goals: int | None = None,
        mode: Mode = "text",
        max_steps: int = 15,
        show_admissible: bool = True,
        action_format: Literal["tags", "plain"] = "tags",
        reward_mode: Literal["success", "score"] = "success",
        success_reward: float = 10.0,
        anchor_options: bool = True,
        backend: str = "engine",
        instructions: str | None = None,
        paid_for: Literal["success", "score"] | None = None,
    ) -> None:
        reward_mode = renamed_option("paid_for", paid_for, "reward_mode", reward_mode, default="success")
        is_site = backend.startswith(("http://", "https://"))
        for name, value, allowed in (
            ("split", split, tuple(SPLITS)),
            ("mode", mode, ("text", "text_rich")),
            ("action_format", action_format, tuple(INSTRUCTIONS)),
            ("reward_mode", reward_mode, ("success", "score")),
            ("backend", "http://..." if is_site else backend, ("engine", "upstream", "http://...")),
        ):
            check_choice(name, value, allowed, "WebShopEnv")
        for name, number in (("num_products", num_products), ("num_goals", num_goals), ("max_steps", max_steps)):
            if number is not None and number < 1:
                raise ValueError(f"WebShopEnv: `{name}` must be at least 1, got {number}.")
        _check_backend(backend, is_site, num_products, human_goals, data_dir, seed, num_goals)
        self.split = split
        self.max_steps = max_steps
        self.show_admissible = show_admissible
        self.action_format = action_format
        self.reward_mode = reward_mode
        self.success_reward = success_reward
        self.anchor_options = anchor_options
        self.instructions = INSTRUCTIONS[action_format] if instructions is None else instructions
        self._catalogue: WebShopCatalogue | None = None
        self._open(backend, is_site, data_dir, subset, num_products, seed, human_goals, num_goals, mode)
        self._steps = 0
        self._over = "`reset` starts one"

    def _open(
        self,
        backend: str,
        is_site: bool,
        data_dir: str | os.PathLike[str] | None,
        subset: str | None,
        num_products: int | None,
        seed: int | None,
        human_goals: bool,
        num_goals: int | None,
        mode: Mode,
    ) -> None:
        """Opens the shop and chooses the goals of the split."""
        self._goals: Sequence[Goal] | None = None
        self._engine: WebShopEngine | UpstreamWebShopEngine | UpstreamSiteEngine
        if is_site:
            self._engine = UpstreamSiteEngine(backend, mode)
            first, last = SPLITS[self.split].start, SPLITS[self.split].stop
            self._numbers = range(first, first + (num_goals or 0))[: None if last is None else last - first]
        elif backend == "upstream":
            self._engine = UpstreamWebShopEngine(None, mode, human_goals, num_products)
            self._goals = self._engine.goals
        else:
            if data_dir is None:
                self._catalogue = _generated(num_products or 0, seed or 0)
            else:
                self._catalogue = _released(os.fspath(data_dir), subset, seed)
            self._engine = WebShopEngine(self._catalogue, mode, human_goals)
            self._goals = self._catalogue.goals(human_goals)
        if self._goals is not None:
            self._numbers = split_numbers(len(self._goals), self.split)[:num_goals]

    def __len__(self) -> int:
        """Number of goals."""
        return len(self._numbers)

    @property
    def catalogue(self) -> WebShopCatalogue:
        """The shop.

        Raises:
            ValueError: the backend is upstream, which has none.
        """
        if self._catalogue is None:
            raise ValueError("WebShopEnv: upstream has no catalogue of this package; use `data_dir` to have both.")
        return self._catalogue

    def tasks(self) -> list[dict[str, Any]]:
        """The goals as dataset rows.

        Returns:
            `list[dict]`: for each goal `goal` (its number, counted over all splits), `task_type` (the department of
            its product), `environment` (`"webshop"`) and `prompt` (a list with the system message, if there is one).
        """
        prompt = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [
            {
                "goal": number,
                "task_type": "webshop" if self._goals is None else self._goals[number].category,
                "environment": "webshop",
                "prompt": [dict(message) for message in prompt],
            }
            for number in self._numbers
        ]

    def ceiling(self) -> Ceiling | None:
        """Reward of the right products. The reward does not recognise every option, so some goals cannot reach 1.

        Report it with every success rate.

        Returns:
            [`Ceiling`], or `None` for upstream.
        """
        if self._catalogue is None or self._goals is None:
            return None
        best = [self._catalogue.best_purchase(self._goals[number])[0] for number in self._numbers]
        return Ceiling(score=sum(best) / len(best), success=sum(score == 1.0 for score in best) / len(best))

    def reset(self, goal: SupportsIndex, **row: Any) -> str:
        """Starts an episode.

        Args:
            goal (`int`): number of the goal, as in [`tasks`].
            **row: other columns of the dataset row; not used.

        Returns:
            `str`: the search page with the instruction, and the admissible actions with `show_admissible`.

        Raises:
            IndexError: the goal is not one of this environment's.
        """
        self.close()
        number = operator.index(goal)
        if number not in self._numbers:
            raise IndexError(
                f"No goal {number} in this WebShopEnv: the split {self.split!r} has the goals "
                f"{self._numbers.start} to {self._numbers.stop - 1}."
            )
        self._state = state = self._engine.reset(number)
        self._steps, self._over = 0, ""
        return self._render(state)

    def step(self, action: str) -> StepResult:
        """Plays one answer of the policy.

        Args:
            action (`str`): the policy's whole answer.

        Returns:
            [`StepResult`]: `terminated` once something is bought, `truncated` when `max_steps` are used up. `info` has
            `anchor_state`, `admissible_actions`, `is_action_valid` (well-formed, and a search or a click on something
            that is there), `score` (the reward of the purchase, from 0 to 1), `success` (the score is 1),
            `task_type` and `ground_truth` (title and options of the product that the goal was made from; the policy
            does not see it).

        Raises:
            RuntimeError: no episode is running.
        """
        if self._over:
            raise RuntimeError(f"WebShopEnv.step: no episode is running; {self._over}.")
        command, well_formed = read_answer(action, self.action_format)
        is_valid = well_formed and self._engine.does_something(command)
        self._state = state = self._engine.step(command)
        self._steps += 1
        truncated = not state.done and self._steps >= self.max_steps
        if state.done or truncated:
            self._over = "the last one has " + (
                "ended with a purchase" if state.done else f"used up its {self.max_steps} steps"
            )
        success = state.reward == 1.0
        return StepResult(
            observation=state.observation if self._over else self._render(state),
            reward=self.success_reward * (state.reward if self.reward_mode == "score" else success),
            terminated=state.done,
            truncated=truncated,
            info={
                "anchor_state": self._anchor(state),
                "admissible_actions": _listed(state),
                "is_action_valid": is_valid,
                "score": state.reward,
                "success": success,
                "task_type": self._engine.goal.category,
                "ground_truth": _wanted(self._engine.goal),
            },
        )

    def close(self) -> None:
        """Ends the episode."""
        self._over = "`reset` starts one"

    def expert_policy(self) -> Callable[[str], str]:
        """The scripted shopper ([`Shopper`]) for the running episode: from each page to an answer in `action_format`.

        It earns the [`ceiling`].

        Raises:
            ValueError: `mode` is not `"text"`, the only pages that it reads, or the backend is upstream.
        """
        if not isinstance(self._engine, WebShopEngine):
            raise ValueError("WebShopEnv: the scripted shopper looks into the engine of this package, not upstream's.")
        if self._engine.mode != "text":
            raise ValueError(f"WebShopEnv: the scripted shopper reads mode='text', not {self._engine.mode!r}.")
        shopper = Shopper(self._engine, self.max_steps)
        return lambda observation: self._written(shopper.act(self._state))

    def random_policy(self, draw: random.Random) -> Callable[[str], str]:
        """Searches for random words of the instruction and clicks on random elements, in `action_format`."""
        shopper = RandomShopper(self._engine, draw)
        return lambda observation: self._written(shopper.act(self._state))

    def _written(self, action: str) -> str:
        return action if self.action_format == "plain" else f"<think></think><action>{action}</action>"

    def _anchor(self, state: WebShopState) -> str:
        if not (self.anchor_options and self._engine.chosen):
            return state.observation
        return f"{state.observation}\nChosen: {json.dumps(self._engine.chosen, sort_keys=True)}"

    def _render(self, state: WebShopState) -> str:
        if not self.show_admissible:
            return state.observation
        return f"{state.observation}{ADMISSIBLE}{', '.join(_listed(state))}"


def _wanted(goal: Goal) -> str:
    """Title and options of the product that a goal was made from."""
    return "; ".join([goal.name, *(option if isinstance(option, str) else option[1] for option in goal.options)])


def _listed(state: WebShopState) -> list[str]:
    """The actions of a page; where it has a search bar, `search[words]` stands for any search."""
    actions = state.available_actions
    if actions["has_search_bar"]:
        return ["search[words]"]
    return [f"click[{text}]" for text in actions["clickables"]]


@lru_cache(maxsize=4)
def _generated(num_products: int, seed: int) -> WebShopCatalogue:
    return WebShopCatalogue.generate(num_products, seed)


@lru_cache(maxsize=4)
def _released(data_dir: str, subset: str | None, seed: int | None) -> WebShopCatalogue:
    if seed is None:
        return WebShopCatalogue.from_json(data_dir, subset=subset)
    return WebShopCatalogue.from_json(data_dir, subset=subset, price_seed=seed)


def _check_backend(
    backend: str,
    is_site: bool,
    num_products: int | None,
    human_goals: bool,
    data_dir: str | os.PathLike[str] | None,
    seed: int | None,
    num_goals: int | None,
) -> None:
    """Checks the options that only some backends have."""
    if backend == "engine":
        if num_products is None:
            raise ValueError("WebShopEnv: `num_products` must be at least 1, got None.")
        if human_goals and data_dir is None:
            raise ValueError("WebShopEnv: `human_goals` needs `data_dir`: generated products have no written goals.")
    elif data_dir is not None or seed is not None:
        raise ValueError("WebShopEnv: `data_dir` and `seed` are not for upstream, which has its own data.")
    elif is_site and human_goals:
        raise ValueError("WebShopEnv: `human_goals` is not for a site, which is started with one kind of goals.")
    elif is_site and num_goals is None:
        raise ValueError("WebShopEnv: `num_goals` is needed for a site, which does not report how many it has.")
