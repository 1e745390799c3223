"""WebShop's steps as prompts."""

from __future__ import annotations

import re
from typing import Literal

from trl_agentic.environments.prompts import TEMPLATE, StepPrompt


_WISH = re.compile(r"Instruction: \[SEP\] (.*?) \[SEP\]", re.DOTALL)


class WebShopPrompt(StepPrompt):
    """Prompts of the comparisons' protocol: the customer's wish, the number of the step, the last pages and actions,
    the current page and its admissible actions.

    Args:
        action_format (`str`, *optional*, defaults to `"tags"`): that of the [`WebShopEnv`].
        template (`str`, *optional*): as in [`StepPrompt`].
    """

    def __init__(self, action_format: Literal["tags", "plain"] = "tags", template: str = TEMPLATE):
        super().__init__(_wish, action_format, template)


def _wish(first_page: str) -> str:
    found = _WISH.search(first_page)
    return f"The customer's wish: {found.group(1)}" if found else first_page
