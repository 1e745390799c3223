import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_agentic.environments.alfworld import (
    TASK_NAMES,
    ALFWorldEngine,
    ALFWorldGame,
    Expert,
    completing_commands,
    demonstration,
    find_games,
    generate_game,
)


ROOM = "You are in the middle of a room. Looking quickly around you, you see "


def play(game: ALFWorldGame, max_steps: int = 50) -> tuple[bool, int]:
    engine, expert = ALFWorldEngine(game), Expert()
    state = engine.reset()
    expert.reset(state.observation)
    for step in range(max_steps):
        action = expert.act(state.observation, state.admissible_actions)
        assert action in state.admissible_actions
        state = engine.step(action)
        if state.won:
            return True, step + 1
    return False, max_steps


@pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
@pytest.mark.parametrize("task_type", TASK_NAMES)
def test_wins_every_generated_game(split, task_type):
    results = [play(generate_game(split, index, 1, task_type)) for index in range(15)]
    assert all(won for won, _ in results)
    assert sum(steps for _, steps in results) / len(results) < 25


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_wins_any_generated_game(index, seed):
    assert play(generate_game("valid_unseen", index, seed))[0]


def test_wins_released_games(shared_dir):
    references = find_games(shared_dir / "data" / "alfworld" / "alfworld_games.tar.xz", "valid_seen")
    assert len(references) == 140
    results = [play(reference.load()) for reference in references]
    assert all(won for won, _ in results)


def scripted(first: str, exchanges: list[tuple[str, str, list[str]]]) -> None:
    """Checks the expert's answer to each (observation, expected action, further admissible actions)."""
    expert = Expert()
    expert.reset(first)
    for observation, expected, others in exchanges:
        assert expert.act(observation, sorted([expected, *others])) == expected


def test_opens_takes_and_places_with_recovery():
    # A mug lies on tables far more often than in cabinets; the goal's own receptacles are not searched.
    first = f"{ROOM}a cabinet 2, a cabinet 1, a desk 1, and a shelf 1.\n\nYour task is to: put some mug on shelf."
    scripted(
        first,
        [
            (first, "go to desk 1", ["go to cabinet 1", "go to cabinet 2", "go to shelf 1", "look"]),
            ("Nothing happens.", "go to desk 1", ["go to cabinet 1", "go to cabinet 2", "go to shelf 1", "look"]),
            ("You arrive at desk 1. On the desk 1, you see a pen 1.", "go to cabinet 1", ["take pen 1 from desk 1"]),
            ("You arrive at cabinet 1. The cabinet 1 is closed.", "open cabinet 1", ["go to cabinet 2"]),
            # Taken away by somebody: back to what is not known yet.
            ("You arrive at desk 1. On the desk 1, you see a pen 1.", "go to cabinet 1", ["take pen 1 from desk 1"]),
            ("You arrive at cabinet 1. The cabinet 1 is closed.", "open cabinet 1", ["go to cabinet 2"]),
            (
                "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 2, and a mug 1.",
                "take mug 2 from cabinet 1",
                ["take mug 1 from cabinet 1", "close cabinet 1", "go to cabinet 2"],
            ),
            ("You pick up the mug 2 from the cabinet 1.", "go to shelf 1", ["move mug 2 to cabinet 1"]),
            ("You arrive at shelf 1. On the shelf 1, you see nothing.", "move mug 2 to shelf 1", ["go to desk 1"]),
        ],
    )


@pytest.mark.parametrize(
    ("sentence", "verb", "tool"),
    [
        ("put a clean plate in shelf.", "clean", "sinkbasin"),
        ("clean some plate and put it in shelf.", "clean", "sinkbasin"),
        ("put a hot plate in shelf.", "heat", "microwave"),
        ("heat some plate and put it in shelf.", "heat", "microwave"),
        ("put a cool plate in shelf.", "cool", "fridge"),
        ("cool some plate and put it in shelf.", "cool", "fridge"),
    ],
)
def test_prepares_before_placing(sentence, verb, tool):
    first = f"{ROOM}a {tool} 1, a desk 1, and a shelf 1.\n\nYour task is to: {sentence}"
    scripted(
        first,
        [
            ("You arrive at desk 1. On the desk 1, you see a plate 1.", "take plate 1 from desk 1", []),
            ("You pick up the plate 1 from the desk 1.", f"go to {tool} 1", ["go to shelf 1"]),
            (f"You arrive at {tool} 1. The {tool} 1 is closed.", f"{verb} plate 1 with {tool} 1", [f"open {tool} 1"]),
            (f"You {verb} the plate 1 using the {tool} 1.", "go to shelf 1", [f"{verb} plate 1 with {tool} 1"]),
        ],
    )


@pytest.mark.parametrize("sentence", ["look at book under the desklamp.", "examine the book with the desklamp."])
def test_holds_the_object_under_the_lamp(sentence):
    first = f"{ROOM}a bed 1, a desk 1, and a sidetable 1.\n\nYour task is to: {sentence}"
    scripted(
        first,
        [
            ("You arrive at bed 1. On the bed 1, you see a book 1.", "take book 1 from bed 1", ["go to desk 1"]),
            ("You pick up the book 1 from the bed 1.", "go to sidetable 1", ["go to desk 1", "move book 1 to bed 1"]),
            ("You arrive at sidetable 1. On the sidetable 1, you see a pen 1.", "go to desk 1", ["go to bed 1"]),
            ("You arrive at desk 1. On the desk 1, you see a desklamp 1.", "use desklamp 1", ["go to bed 1"]),
        ],
    )


@pytest.mark.parametrize("sentence", ["put two pen in drawer.", "find two pen and put them in drawer."])
def test_brings_both_objects_to_one_receptacle(sentence):
    first = f"{ROOM}a desk 1, a drawer 2, and a drawer 1.\n\nYour task is to: {sentence}"
    scripted(
        first,
        [
            ("You arrive at desk 1. On the desk 1, you see a pen 2, and a pen 1.", "take pen 2 from desk 1", []),
            ("You pick up the pen 2 from the desk 1.", "go to drawer 1", ["go to drawer 2", "move pen 2 to desk 1"]),
            ("You arrive at drawer 1. The drawer 1 is closed.", "open drawer 1", ["go to drawer 2"]),
            # Put into the other drawer by somebody: that one is the goal's now.
            ("You move the pen 2 to the drawer 2.", "go to desk 1", ["go to drawer 1", "take pen 2 from drawer 2"]),
            ("You arrive at desk 1. On the desk 1, you see a pen 1.", "take pen 1 from desk 1", []),
            ("You pick up the pen 1 from the desk 1.", "go to drawer 2", ["go to drawer 1", "move pen 1 to desk 1"]),
        ],
    )


def test_puts_away_what_it_did_not_come_for():
    first = f"{ROOM}a desk 1, and a shelf 1.\n\nYour task is to: put a book in shelf."
    scripted(
        first,
        [
            ("You pick up the pen 1 from the desk 1.", "move pen 1 to desk 1", ["go to shelf 1", "examine pen 1"]),
            ("You move the pen 1 to the desk 1.", "go to desk 1", ["go to shelf 1"]),
        ],
    )


def test_reads_the_inventory_and_needs_no_banner():
    game = generate_game("train", 0)
    state = ALFWorldEngine(game).reset()
    with_banner, without = Expert(), Expert()
    with_banner.reset(state.observation)
    without.reset(state.observation.split("\n\n", 1)[1])
    assert with_banner.act("Nothing happens.", state.admissible_actions) == without.act(
        "Nothing happens.", state.admissible_actions
    )
    expert = Expert()
    expert.reset(f"{ROOM}a desk 1, and a shelf 1.\n\nYour task is to: put a book in shelf.")
    assert expert.act("You are carrying: a book 3.", ["go to shelf 1", "go to desk 1"]) == "go to shelf 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ROOM}a desk 1.\n\nYour task is to: tidy up.", "Not a task of ALFWorld's templates: 'tidy up.'"),
        (f"{ROOM}a desk 1.", "Not a task of ALFWorld's templates: ''"),
        ("Your task is to: put a book in shelf.", "No receptacles in the first observation"),
    ],
)
def test_unknown_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Expert().reset(text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.integers(0, 40))
def test_finishes_after_any_start(index, rng, random_steps):
    # Somebody plays at random first, the expert watching: it must still win, in time for a search of its own.
    engine, expert = ALFWorldEngine(generate_game("train", index)), Expert()
    state = engine.reset()
    expert.reset(state.observation)
    for _ in range(random_steps):
        expert.act(state.observation, state.admissible_actions)
        state = engine.step(rng.choice(state.admissible_actions))
        if state.won:
            return
    for _ in range(100):
        state = engine.step(expert.act(state.observation, state.admissible_actions))
        if state.won:
            return
    pytest.fail("not won after 100 steps of the expert")


def replay(game, steps):
    engine = ALFWorldEngine(game)
    state = engine.reset()
    for step in steps:
        assert step.observation == state.observation
        yield step, state
        state = engine.step(step.action)
    assert state.won


def test_demonstration_without_noise_is_the_experts_play():
    game = generate_game("train", 5)
    steps = demonstration(game, random.Random(0), noise=0.0)
    assert len(steps) == play(game)[1]
    for step, state in replay(game, steps):
        assert step.imitate
        assert step.action in state.admissible_actions


def test_demonstration_marks_wrong_moves_and_recovers():
    refused = admitted = 0
    for index in range(120):
        game = generate_game("train", index)
        steps = demonstration(game, random.Random(index), noise=0.3, max_steps=100)
        assert steps == demonstration(game, random.Random(index), noise=0.3, max_steps=100)
        for step, state in replay(game, steps):
            assert step.action in state.admissible_actions or not step.imitate
            if not step.imitate:
                refused += step.action not in state.admissible_actions
                admitted += step.action in state.admissible_actions
    assert refused > 50
    assert admitted > 50


def test_demonstration_repeats_refused_moves_and_gives_later_ones_too_early():
    repeated = hasty = 0
    for index in range(40):
        steps = demonstration(generate_game("train", index), random.Random(index), noise=0.3, max_steps=100)
        for before, after in zip(steps, steps[1:], strict=False):
            repeated += not before.imitate and before.action == after.action and not after.imitate
        wrong = [step.action for step in steps if not step.imitate]
        hasty += sum(action.startswith(("take ", "move ", "clean ", "heat ", "cool ")) for action in wrong)
    assert repeated > 20
    assert hasty > 20


def test_demonstration_of_a_player_who_hesitates():
    idle = moves = 0
    for index in range(40):
        game = generate_game("train", index)
        steps = demonstration(game, random.Random(index), noise=0.0, idle=0.6, max_steps=200)
        useful = [step.action for step in steps if step.action not in ("look", "inventory")]
        assert useful == [step.action for step in demonstration(game, random.Random(index), noise=0.0)]
        for step, state in replay(game, steps):
            assert step.imitate
            assert step.action in state.admissible_actions
        idle += len(steps) - len(useful)
        moves += len(steps)
    assert 0.55 < idle / moves < 0.65


def test_demonstration_stops_at_its_budget_and_checks_its_probabilities():
    assert len(demonstration(generate_game("train", 0), random.Random(0), noise=0.0, max_steps=2)) == 2
    for name in ("noise", "idle"):
        for value in (-0.1, 1.0):
            with pytest.raises(ValueError, match=f"{name} must be a probability below 1"):
                demonstration(generate_game("train", 0), random.Random(0), **{name: value})


@pytest.mark.parametrize(
    ("task_type", "verbs"),
    [
        ("Pick", ["take", "move"]),
        ("Look", ["take", "use"]),
        ("Clean", ["take", "clean", "move"]),
        ("Heat", ["take", "heat", "move"]),
        ("Cool", ["take", "cool", "move"]),
        ("Pick2", ["take", "move", "take", "move"]),
    ],
)
def test_what_completes_a_game(task_type, verbs):
    """The commands win if the player goes to the places that they name."""
    for index in range(5):
        game = generate_game("valid_unseen", index, 3, task_type)
        commands = completing_commands(game)
        assert [command.split()[0] for command in commands] == verbs
        engine = ALFWorldEngine(game)
        state = engine.reset()
        for command in commands:
            place = re.split(" (?:from|to|with) ", command)[-1]
            there = [f"go to {place}"] if place != command else state.admissible_actions
            for move in ["look", *(action for action in there if action.startswith("go to ")), f"open {place}"]:
                if command not in state.admissible_actions:
                    state = engine.step(move)
            assert command in state.admissible_actions
            state = engine.step(command)
        assert state.won
