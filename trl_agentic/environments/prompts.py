"""What the environments of this package tell a policy, how they read its answers, and prompts of single steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

from trl_agentic.types import View


ADMISSIBLE = "\n\nAdmissible actions: "
"""What stands between an observation and the list of admissible actions."""

TEMPLATE = (
    "{task}\n\nThis is step {step}; {steps_taken} steps are behind you. What you last saw and did:\n{history}\n\n"
    "You see now: {observation}"
)
_LAST_CHARACTERS = 30
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_FIELDS = ("task", "step", "steps_taken", "history", "observation")


def read_answer(answer: str, action_format: str) -> tuple[str, bool]:
    """The action in an answer of the policy, and whether the answer keeps to the format.

    Args:
        answer (`str`): the whole answer.
        action_format (`str`): `"tags"`: the action is what stands in the first `<action>...</action>`, in lower
            case; without one the last 30 characters are tried. The format asks for that tag, for `<think>...</think>`
            and for no Chinese character. `"plain"`: the whole answer is the action, white space around it left out.
    """
    if action_format == "plain":
        return answer.strip(), True
    tagged = _ACTION.search(answer)
    if tagged is None:
        return answer[-_LAST_CHARACTERS:].strip().lower(), False
    well_formed = _THOUGHT.search(answer) is not None and _CHINESE.search(answer) is None
    return tagged.group(1).strip().lower(), well_formed


class StepPrompt:
    """Renders a step as one message: the task, the number of the step, the last observations and actions, and the
    current observation with its admissible actions.

    Observations of the past are shown without their admissible actions, and of an answer its action alone. The first
    step shows the first observation as it is. The row's `prompt` comes before that.

    Args:
        task (`Callable[[str], str]`): from the first observation, what the task is.
        action_format (`str`, *optional*, defaults to `"tags"`): how the environment reads answers, `"tags"` or
            `"plain"`.
        template (`str`, *optional*): text of all steps but the first, with the fields `{task}`, `{step}`,
            `{steps_taken}`, `{history}` and `{observation}`.

    Raises:
        ValueError: the template has another field.
    """

    def __init__(self, task: Callable[[str], str], action_format: str = "tags", template: str = TEMPLATE):
        unknown = {name for _, name, _, _ in Formatter().parse(template) if name is not None} - {*_FIELDS}
        if unknown:
            raise ValueError(
                f"`template` has the field {sorted(unknown)[0]!r}; a step has {', '.join(_FIELDS)} to show. Write a "
                "brace that is no field as {{ or }}."
            )
        self._task, self._action_format, self._template = task, action_format, template

    def __call__(self, view: View) -> list[dict[str, Any]]:
        """The messages of a step's prompt."""
        prompt = view.task.get("prompt") or []
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return [*messages, {"role": "user", "content": self._text(view)}]

    def _text(self, view: View) -> str:
        if view.step == 1:
            return view.observation
        first = view.step - len(view.history)
        history = [
            f"Step {first + i}: you saw: {turn.observation.rpartition(ADMISSIBLE)[0] or turn.observation}\n"
            f"Step {first + i}: you did: {read_answer(turn.action, self._action_format)[0]}"
            for i, turn in enumerate(view.history)
        ]
        return self._template.format(
            task=self._task(view.first_observation),
            step=view.step,
            steps_taken=view.step - 1,
            history="\n".join(history) or "(left out)",
            observation=view.observation,
        )
