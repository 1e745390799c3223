"""Players that can be evaluated: a checkpoint, a chat-completions endpoint, a scripted expert, random actions."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from trl_agentic.evaluation.text_loop import Answer, play_text
from trl_agentic.rollout.loop import Budgets, Episode, play
from trl_agentic.rollout.prompts import FULL, PromptPolicy
from trl_agentic.types import Trajectory


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trl_agentic.rollout.engines import Sampling


class Player(Protocol):
    """Plays a batch of episodes to their end, concurrently or one after another."""

    def play(self, episodes: list[Episode]) -> list[Trajectory]: ...


class ModelPlayer:
    """A causal language model, sampled by transformers.

    Args:
        model ([`~transformers.PreTrainedModel`]): the policy, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): tokenizer with a chat template.
        sampling ([`~trl_agentic.rollout.engines.Sampling`]): sampling parameters; `temperature=0` is greedy.
        max_turns (`int`, *optional*, defaults to `50`): turns of a rollout.
        max_turn_tokens (`int`, *optional*, defaults to `512`): tokens of a turn.
        max_context (`int`, *optional*): tokens of context. If `None`, the model's `max_position_embeddings`.
        chat_template_kwargs (`dict`, *optional*): extra arguments of the chat template.
        context ([`~trl_agentic.rollout.prompts.PromptPolicy`], *optional*): how much of a rollout its prompts show; by
            default all of it.

    Raises:
        ValueError: the tokenizer has no usable chat template, or the model's config has no context length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        max_turns: int = 50,
        max_turn_tokens: int = 512,
        max_context: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        context: PromptPolicy = FULL,
    ):
        from trl_agentic.rollout.chat import ChatRenderer
        from trl_agentic.rollout.engines import transformers_engine

        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        if tokenizer.eos_token_id not in ends:
            ends.insert(0, tokenizer.eos_token_id)
        max_context = max_context or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if max_context is None:
            raise ValueError("The model's config has no context length: set `max_context`.")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._context = context
        self._budgets = Budgets(max_turns, max_turn_tokens, max_turns * max_context, max_context)
        self._chat = ChatRenderer(tokenizer, ends, chat_template_kwargs=chat_template_kwargs)
        self._new_engine = partial(transformers_engine, model.eval(), ends, pad, sampling)

    @classmethod
    def from_pretrained(
        cls, name: str, sampling: Sampling, dtype: str = "auto", device: Any = "cpu", **options: Any
    ) -> ModelPlayer:
        """Loads a checkpoint folder, a Hub id, or a PEFT adapter (on its base model).

        Args:
            name (`str`): folder or Hub id. An adapter without a tokenizer uses that of its base model.
            sampling ([`~trl_agentic.rollout.engines.Sampling`]): sampling parameters.
            dtype (`str`, *optional*, defaults to `"auto"`): `"auto"` (that of the files), `"float32"`, ...
            device (*optional*, defaults to `"cpu"`): where the model runs.
            **options: other arguments of [`ModelPlayer`].
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device)
        adapters = getattr(model, "peft_config", {})
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError):
            if not adapters:
                raise
            tokenizer = AutoTokenizer.from_pretrained(adapters["default"].base_model_name_or_path)
        return cls(model, tokenizer, sampling, **options)

    def play(self, episodes: list[Episode]) -> list[Trajectory]:
        """Plays the episodes in one batch."""
        return play(episodes, self._new_engine(), self._chat, self._budgets, context=self._context)


class TextPlayer:
    """Policy that answers messages with text.

    Args:
        make_policy (`Callable`): from an [`~trl_agentic.rollout.loop.Episode`] whose environment has been reset, a
            function from the messages so far to the next [`Answer`].
        max_turns (`int`, *optional*, defaults to `50`): turns of a rollout.
        workers (`int`, *optional*, defaults to `1`): rollouts that are played concurrently, each in its own thread.
    """

    def __init__(
        self,
        make_policy: Callable[[Episode], Callable[[list[dict[str, Any]]], Answer]],
        max_turns: int = 50,
        workers: int = 1,
    ):
        self._make_policy = make_policy
        self._max_turns = max_turns
        self._workers = workers

    def play(self, episodes: list[Episode]) -> list[Trajectory]:
        """Plays the episodes. An error of the policy itself is raised, because it is not a result of the task."""
        if self._workers == 1:
            return [play_text(episode, self._make_policy, self._max_turns) for episode in episodes]
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(lambda episode: play_text(episode, self._make_policy, self._max_turns), episodes))


def random_policy(episode: Episode) -> Callable[[list[dict[str, Any]]], Answer]:
    """The environment's own `random_policy(draw)` with the episode's seed: the floor.

    Raises:
        TypeError: the environment has none.
    """
    policy = _own(episode, "random_policy", "random_policy(draw: random.Random)")
    return _scripted(policy(random.Random(episode.seed)))


def expert_policy(episode: Episode) -> Callable[[list[dict[str, Any]]], Answer]:
    """The environment's own `expert_policy()`, a scripted player: the ceiling.

    Raises:
        TypeError: the environment has none.
        ValueError: it cannot play this episode. The message says why.
    """
    return _scripted(_own(episode, "expert_policy", "expert_policy()")())


def _own(episode: Episode, name: str, signature: str) -> Any:
    method = getattr(episode.environment, name, None)
    if not callable(method):
        raise TypeError(
            f"{type(episode.environment).__name__} has no method `{signature}` that returns a function from an "
            "observation to an action. Define it, or evaluate a checkpoint or an endpoint."
        )
    return method


def _scripted(act: Callable[[str], str]) -> Callable[[list[dict[str, Any]]], Answer]:
    return lambda messages: Answer(act(messages[-1]["content"]))
