"""ALFWorld's steps as prompts."""

from __future__ import annotations

import re
from typing import Literal

from trl_agentic.environments.prompts import TEMPLATE, StepPrompt


_TASK = re.compile(r"Your task is to: .*")


class ALFWorldPrompt(StepPrompt):
    """Prompts of the comparisons' protocol: the task, the number of the step, the last observations and actions, the
    current observation and its admissible actions.

    Args:
        action_format (`str`, *optional*, defaults to `"tags"`): that of the [`ALFWorldEnv`].
        template (`str`, *optional*): as in [`StepPrompt`].

    Example:

    ```python
    >>> args = GAGPOConfig(context="window", history_length=2)
    >>> GAGPOTrainer(model, args=args, environment_factory=ALFWorldEnv, prompt_renderer=ALFWorldPrompt())
    ```
    """

    def __init__(self, action_format: Literal["tags", "plain"] = "tags", template: str = TEMPLATE):
        super().__init__(_task, action_format, template)


def _task(first_observation: str) -> str:
    found = _TASK.search(first_observation)
    return found.group() if found else first_observation
