"""Steps as single messages: the protocol of the comparisons."""

from __future__ import annotations

import pytest

from trl_agentic.environments import ALFWorldEnv, WebShopEnv
from trl_agentic.environments.alfworld import ALFWorldPrompt
from trl_agentic.environments.prompts import ADMISSIBLE, StepPrompt
from trl_agentic.environments.webshop import WebShopPrompt
from trl_agentic.types import Turn, View


def view(observations: list[str], answers: list[str], history_length: int = 2, prompt: object = None) -> View:
    """The step after these answers, of which each was given to the observation of the same number."""
    turns = [Turn([], [], None, answer, seen, "") for seen, answer in zip(observations, answers, strict=False)]
    history = turns[len(turns) - min(history_length, len(turns)) :]
    return View({"prompt": prompt}, len(turns) + 1, observations[0], history, observations[-1], {})


def tagged(action: str) -> str:
    return f"<think>Well.</think>\n<action> {action.upper()} </action>"


def test_alfworld():
    env = ALFWorldEnv(split="valid_unseen")
    row = env.tasks()[0]
    observations = [env.reset(**row)]
    actions = [env.admissible_actions[i] for i in (0, 2, 1, 3)]
    for action in actions:
        observations.append(env.step(tagged(action)).observation)
    task = observations[0].split("\n\n")[1]
    assert task.startswith("Your task is to: ")

    system, first = ALFWorldPrompt()(view(observations[:1], [], prompt=row["prompt"]))
    assert system == row["prompt"][0] and first == {"role": "user", "content": observations[0]}

    system, step = ALFWorldPrompt()(view(observations, [tagged(a) for a in actions], prompt=row["prompt"]))
    assert system == row["prompt"][0]
    short = [observation.split(ADMISSIBLE)[0] for observation in observations]
    assert step["content"] == (
        f"{task}\n\nThis is step 5; 4 steps are behind you. What you last saw and did:\n"
        f"Step 3: you saw: {short[2]}\nStep 3: you did: {actions[2]}\n"
        f"Step 4: you saw: {short[3]}\nStep 4: you did: {actions[3]}\n\n"
        f"You see now: {observations[4]}"
    )
    assert step["content"].count(ADMISSIBLE) == 1 and "think" not in step["content"]
    assert step["content"].endswith(", ".join(env.admissible_actions))


def test_webshop():
    env = WebShopEnv(split="test", num_products=50)
    row = env.tasks()[0]
    observations = [env.reset(**row)]
    observations.append(env.step(tagged("search[mug]")).observation)
    wish = observations[0].split(" [SEP] ")[2]
    messages = WebShopPrompt()(view(observations, [tagged("search[mug]")], prompt=row["prompt"]))
    text = messages[-1]["content"]
    assert text.startswith(f"The customer's wish: {wish}\n\nThis is step 2; 1 steps are behind you.")
    assert "Step 1: you did: search[mug]\n\nYou see now: " + observations[1] in text


def test_a_template_of_the_user():
    prompt = ALFWorldPrompt("plain", template="{task} | {step} | {history} | {observation}")
    text = prompt(view(["Hall. Your task is to: sit.", "{task} Kitchen."], ["go"], prompt="Play."))
    assert text == [
        {"role": "user", "content": "Play."},
        {
            "role": "user",
            "content": "Your task is to: sit. | 2 | Step 1: you saw: Hall. Your task is to: sit.\n"
            "Step 1: you did: go | {task} Kitchen.",
        },
    ]
    assert "(left out)" in StepPrompt(str)(view(["a", "b"], ["go"], history_length=0))[0]["content"]


def test_a_template_with_an_unknown_field():
    with pytest.raises(ValueError, match="`template` has the field 'tasks'; a step has task, step"):
        ALFWorldPrompt(template="{tasks} {step}")
