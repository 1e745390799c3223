from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.credit.batches import (
    Rollout,
    assert_independent_of_order_and_of_other_groups,
    make_batch,
    mean,
    padded,
    returns_to_go,
    rollout_lists,
    standardised,
    total,
)
from trl_agentic.credit import discounted_returns, gagpo_advantages, gagpo_values, grouped_mean
from trl_agentic.credit.grouping import state_keys


few = settings(max_examples=60, deadline=None)
A, B, C, D = 0, 1, 2, 3
# Two rollouts of one group: A -> B -> end with rewards 0, 1; A -> C -> end with rewards 0, 0.
EXAMPLE = [Rollout(0, [0.0, 1.0], [A, B]), Rollout(0, [0.0, 0.0], [A, C])]


def close(actual: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, actual.new_tensor(expected), rtol=0, atol=1e-4)


def reference(
    rollouts: list[Rollout],
    gamma: float = 0.95,
    lam: float = 0.8,
    advantage_norm: str = "group",
    scale_by_std: bool = True,
    singleton_value: str = "self",
    leave_one_out: bool = False,
    truncation_bootstrap: bool = False,
    episode_advantage_weight: float = 0.0,
    eps: float = 1e-6,
) -> list[list[float]]:
    """The algorithm step by step, one turn at a time."""
    returns = [returns_to_go(r.rewards, gamma) for r in rollouts]
    turns = [(i, k) for i, r in enumerate(rollouts) for k in range(len(r.rewards))]

    def value(group: int, state: int, without: tuple[int, int] | None = None) -> float:
        visits = [t for t in turns if rollouts[t[0]].group == group and rollouts[t[0]].states[t[1]] == state]
        if not visits:
            return 0.0
        if len(visits) == 1 and singleton_value == "group_mean":
            return mean([returns[i][k] for i, k in turns if rollouts[i].group == group])
        if leave_one_out and without is not None and len(visits) > 1:
            visits = [t for t in visits if t != without]
        return mean([returns[i][k] for i, k in visits])

    advantages: list[list[float]] = []
    for i, r in enumerate(rollouts):
        v = [value(r.group, s, (i, k)) for k, s in enumerate(r.states)]
        bootstrap = truncation_bootstrap and not r.terminated and r.final != -1
        v.append(value(r.group, r.final) if bootstrap else 0.0)
        deltas = [r.rewards[k] + gamma * v[k + 1] - v[k] for k in range(len(r.rewards))]
        penalties = r.penalties or [0.0] * len(deltas)
        advantages.append([a - p for a, p in zip(returns_to_go(deltas, gamma * lam), penalties, strict=True)])

    def peers(i: int, k: int) -> list[tuple[int, int]]:
        same_group = [t for t in turns if rollouts[t[0]].group == rollouts[i].group]
        same_state = [t for t in same_group if rollouts[t[0]].states[t[1]] == rollouts[i].states[k]]
        return {"group": same_group, "anchor": same_state, "batch": turns}[advantage_norm]

    out = []
    for i, r in enumerate(rollouts):
        episodes = [total(o) for o in rollouts if o.group == r.group and o.rewards]
        row = []
        for k, advantage in enumerate(advantages[i]):
            if advantage_norm != "none":
                members = [advantages[j][m] for j, m in peers(i, k)]
                advantage = standardised(advantage, members, scale_by_std, eps)
            if episode_advantage_weight:
                advantage += episode_advantage_weight * standardised(total(r), episodes, scale_by_std, eps)
            row.append(advantage)
        out.append(row)
    return out


options = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([0.0, 0.95, 1.0]),
        "lam": st.sampled_from([0.0, 0.8, 1.0]),
        "advantage_norm": st.sampled_from(["group", "anchor", "batch", "none"]),
        "scale_by_std": st.booleans(),
        "singleton_value": st.sampled_from(["self", "group_mean"]),
        "leave_one_out": st.booleans(),
        "truncation_bootstrap": st.booleans(),
        "episode_advantage_weight": st.sampled_from([0.0, 0.5]),
    }
)


def test_worked_example():
    # R1 = (1, 1), R2 = (0, 0); V(A) = 0.5, V(B) = 1, V(C) = 0.
    # delta1 = (0 + 1 - 0.5, 1 - 1) = (0.5, 0), delta2 = (0 + 0 - 0.5, 0) = (-0.5, 0); lam = 1 adds the zeros.
    raw = gagpo_advantages(make_batch(EXAMPLE), gamma=1.0, lam=1.0, advantage_norm="none")
    close(raw, [[0.5, 0.0], [-0.5, 0.0]])
    # Over the four turns: mean 0, population std sqrt(2 * 0.25 / 4) = sqrt(0.125); 0.5 / sqrt(0.125) = sqrt(2).
    close(gagpo_advantages(make_batch(EXAMPLE), gamma=1.0, lam=1.0), [[math.sqrt(2), 0.0], [-math.sqrt(2), 0.0]])


def test_returns_and_values_by_hand():
    # gamma = 0.95: R1 = (0.95, 1), R2 = (0, 0); V(A) = 0.475, V(B) = 1 and V(C) = 0 are their own returns.
    returns, values = gagpo_values(make_batch(EXAMPLE))
    close(returns, [[0.95, 1.0], [0.0, 0.0]])
    close(values, [[0.475, 1.0], [0.475, 0.0]])
    # gamma = 1: R1 = (1, 1), so the mean of the group is 0.5. The visit of A by the other rollout: 0 and 1.
    returns, values = gagpo_values(make_batch(EXAMPLE), 1.0, "group_mean", leave_one_out=True)
    close(returns, [[1.0, 1.0], [0.0, 0.0]])
    close(values, [[0.0, 0.5], [1.0, 0.5]])


def test_discount_and_lambda_by_hand():
    # gamma = 0.5, lam = 0.5. R1 = (0.5, 1), R2 = (0, 0); V(A) = 0.25, V(B) = 1, V(C) = 0.
    # delta1 = (0.5 * 1 - 0.25, 0) = (0.25, 0), delta2 = (-0.25, 0).
    raw = gagpo_advantages(make_batch(EXAMPLE), gamma=0.5, lam=0.5, advantage_norm="none")
    close(raw, [[0.25, 0.0], [-0.25, 0.0]])
    # One more rollout A -> B -> end with rewards 0, 0: R3 = (0, 0), V(A) = 1/6, V(B) = 1/2, V(C) = 0.
    # delta1 = (1/4 - 1/6, 1 - 1/2) = (1/12, 1/2); A1 = (1/12 + 1/4 * 1/2, 1/2) = (5/24, 1/2)
    # delta2 = (0 - 1/6, 0) = A2; delta3 = (1/4 - 1/6, -1/2); A3 = (1/12 - 1/8, -1/2) = (-1/24, -1/2)
    rollouts = [*EXAMPLE, Rollout(0, [0.0, 0.0], [A, B])]
    raw = gagpo_advantages(make_batch(rollouts), gamma=0.5, lam=0.5, advantage_norm="none")
    close(raw, [[5 / 24, 1 / 2], [-1 / 6, 0.0], [-1 / 24, -1 / 2]])


def test_a_state_visited_twice_in_one_rollout_is_two_members():
    # A -> A -> end with rewards 0, 1, gamma 0.5: R = (0.5, 1), V(A) = 0.75 from both visits.
    # delta = (0.5 * 0.75 - 0.75, 1 - 0.75) = (-0.375, 0.25); lam = 0.
    batch = make_batch([Rollout(0, [0.0, 1.0], [A, A])])
    close(gagpo_advantages(batch, gamma=0.5, lam=0.0, advantage_norm="none"), [[-0.375, 0.25]])
    # Each visit left out of its own value: V-(first) = 1, V-(second) = 0.5.
    # delta = (0.5 * 0.5 - 1, 1 - 0.5) = (-0.75, 0.5)
    batch = make_batch([Rollout(0, [0.0, 1.0], [A, A])])
    actual = gagpo_advantages(batch, gamma=0.5, lam=0.0, advantage_norm="none", leave_one_out=True)
    close(actual, [[-0.75, 0.5]])


def test_one_state_id_in_two_groups_is_two_states():
    rollouts = [Rollout(0, [1.0], [A]), Rollout(0, [0.0], [A]), Rollout(1, [5.0], [A]), Rollout(1, [3.0], [A])]
    actual = gagpo_advantages(make_batch(rollouts), advantage_norm="none")
    close(actual, [[0.5], [-0.5], [1.0], [-1.0]])


def test_leave_one_out_by_hand():
    # gamma = lam = 1. V-(A) is the other's return: 0 for rollout 1, 1 for rollout 2. B and C are singletons.
    # delta1 = (1 - 0, 0), delta2 = (0 - 1, 0)
    actual = gagpo_advantages(make_batch(EXAMPLE), 1.0, 1.0, advantage_norm="none", leave_one_out=True)
    close(actual, [[1.0, 0.0], [-1.0, 0.0]])


def test_singleton_value_group_mean_by_hand():
    # All turns of the group: R = 1, 1, 0, 0, mean 0.5 = V(B) = V(C) = V(A).
    # delta1 = (0.5 - 0.5, 1 - 0.5) = (0, 0.5), delta2 = (0, -0.5); lam = 1: A1 = (0.5, 0.5), A2 = (-0.5, -0.5).
    actual = gagpo_advantages(make_batch(EXAMPLE), 1.0, 1.0, advantage_norm="none", singleton_value="group_mean")
    close(actual, [[0.5, 0.5], [-0.5, -0.5]])


def test_truncation_bootstrap_by_hand():
    # Rollout 1: A, reward 0, cut in B. Rollout 2: B, reward 1, end. gamma = 0.5: R1 = 0, R2 = 1, V(A) = 0, V(B) = 1.
    rollouts = [Rollout(0, [0.0], [A], terminated=False, final=B), Rollout(0, [1.0], [B], final=-1)]
    plain = {"gamma": 0.5, "lam": 1.0, "advantage_norm": "none"}
    close(gagpo_advantages(make_batch(rollouts), **plain), [[0.0], [0.0]])
    # delta1 = 0 + 0.5 * V(B) - V(A) = 0.5
    close(gagpo_advantages(make_batch(rollouts), truncation_bootstrap=True, **plain), [[0.5], [0.0]])
    # A state without a visit in the group, no state, and a terminal state have the value 0.
    for change in ({"final": D}, {"final": -1}, {"terminated": True}):
        changed = [rollouts[0]._replace(**change), rollouts[1]]
        close(gagpo_advantages(make_batch(changed), truncation_bootstrap=True, **plain), [[0.0], [0.0]])
    other_group = [rollouts[0], rollouts[1]._replace(group=1)]
    close(gagpo_advantages(make_batch(other_group), truncation_bootstrap=True, **plain), [[0.0], [0.0]])
    # Cut in the state of its own last turn.
    back_in_a = [rollouts[0]._replace(rewards=[1.0], final=A)]
    close(gagpo_advantages(make_batch(back_in_a), truncation_bootstrap=True, **plain), [[0.5]])


def test_truncation_bootstrap_from_a_state_visited_once():
    # As above; the mean of all returns of the group is 0.5, so V(A) = V(B) = 0.5 for states that were visited once.
    # delta1 = 0 + 0.5 * V(B) - V(A) = -0.25, delta2 = 1 - V(B) = 0.5
    rollouts = [Rollout(0, [0.0], [A], terminated=False, final=B), Rollout(0, [1.0], [B])]
    plain = {"gamma": 0.5, "lam": 1.0, "advantage_norm": "none", "truncation_bootstrap": True}
    close(gagpo_advantages(make_batch(rollouts), singleton_value="group_mean", **plain), [[-0.25], [0.5]])
    # A second visit of B with return 0: V(B) = 0.5 from its visits, V(A) = 1/3 from the group.
    # delta1 = 0 + 0.5 * 0.5 - 1/3 = -1/12, delta2 = 1 - 0.5, delta3 = 0 - 0.5
    rollouts.append(Rollout(0, [0.0], [B]))
    close(gagpo_advantages(make_batch(rollouts), singleton_value="group_mean", **plain), [[-1 / 12], [0.5], [-0.5]])


def test_truncation_bootstrap_without_a_final_state():
    # -1 stands for no final state, even if a turn has this id; -2 is an id like any other: 0.5 * V(-2) = 0.5.
    plain = {"gamma": 0.5, "lam": 1.0, "advantage_norm": "none", "truncation_bootstrap": True}
    for state, expected in ((-1, 0.0), (-2, 0.5)):
        rollouts = [Rollout(0, [0.0], [A], terminated=False, final=state), Rollout(0, [1.0], [state])]
        close(gagpo_advantages(make_batch(rollouts), **plain), [[expected], [0.0]])


def test_episode_advantage_by_hand():
    # Episode returns 1 and 0: mean 0.5, population std 0.5, so +1 and -1, added with weight 0.25 after step 6.
    actual = gagpo_advantages(make_batch(EXAMPLE), 1.0, 1.0, episode_advantage_weight=0.25)
    close(actual, [[math.sqrt(2) + 0.25, 0.25], [-math.sqrt(2) - 0.25, -0.25]])
    actual = gagpo_advantages(make_batch(EXAMPLE), 1.0, 1.0, episode_advantage_weight=1.0)
    close(actual, [[math.sqrt(2) + 1.0, 1.0], [-math.sqrt(2) - 1.0, -1.0]])
    # eps = 1: 0.5 / (0.5 + 1) = 1/3, added to the raw advantages (0.5, 0) and (-0.5, 0).
    actual = gagpo_advantages(
        make_batch(EXAMPLE), 1.0, 1.0, advantage_norm="none", episode_advantage_weight=1.0, eps=1.0
    )
    close(actual, [[0.5 + 1 / 3, 1 / 3], [-0.5 - 1 / 3, -1 / 3]])
    # Outcomes take the place of the sums: 3 and 7, so -1 and +1.
    rollouts = [EXAMPLE[0]._replace(outcome=3.0), EXAMPLE[1]._replace(outcome=7.0)]
    actual = gagpo_advantages(make_batch(rollouts), 1.0, 1.0, episode_advantage_weight=0.25)
    close(actual, [[math.sqrt(2) - 0.25, -0.25], [-math.sqrt(2) + 0.25, 0.25]])


def test_penalties_count_for_their_own_turn_only():
    # Raw (0.5, 0), (-0.5, 0) as in the worked example, less 0.25 for the second turn of rollout 1.
    rollouts = [EXAMPLE[0]._replace(penalties=[0.0, 0.25]), EXAMPLE[1], Rollout(0, [0.0], [D])]
    actual = gagpo_advantages(make_batch(rollouts), 1.0, 1.0, advantage_norm="none")
    close(actual, [[0.5, -0.25], [-0.5, 0.0], [0.0, 0.0]])


def test_norms_by_hand():
    rollouts = [*EXAMPLE, Rollout(1, [4.0], [A]), Rollout(1, [0.0], [A])]
    # Raw: (0.5, 0), (-0.5, 0) in group 0 and 2, -2 in group 1 (gamma = lam = 1).
    plain = {"gamma": 1.0, "lam": 1.0, "eps": 0.0}
    root = math.sqrt(2)
    close(gagpo_advantages(make_batch(rollouts), **plain), [[root, 0.0], [-root, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    # The visits of A differ by sign in each group; B and C are alone.
    actual = gagpo_advantages(make_batch(rollouts), advantage_norm="anchor", **plain)
    close(actual, [[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    # Six turns with mean 0 and squares 0.25 * 2 + 4 * 2 = 8.5.
    std = math.sqrt(8.5 / 6)
    actual = gagpo_advantages(make_batch(rollouts), advantage_norm="batch", **plain)
    close(actual, [[0.5 / std, 0.0], [-0.5 / std, 0.0], [2.0 / std, 0.0], [-2.0 / std, 0.0]])
    # Mean only.
    rollouts = [Rollout(0, [1.0], [A]), Rollout(0, [0.0], [A]), Rollout(0, [6.0], [B]), Rollout(0, [0.0], [B])]
    actual = gagpo_advantages(make_batch(rollouts), scale_by_std=False)
    close(actual, [[0.5], [-0.5], [3.0], [-3.0]])


@few
@given(rollout_lists(), options)
def test_equals_the_loop(rollouts: list[Rollout], chosen: dict[str, Any]):
    batch = make_batch(rollouts)
    actual = gagpo_advantages(batch, eps=1e-3, **chosen)
    expected = padded(reference(rollouts, eps=1e-3, **chosen), batch.rewards)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert not actual[~batch.turn_mask].any()


@few
@given(rollout_lists(), options)
def test_order_and_other_groups_do_not_matter(rollouts: list[Rollout], chosen: dict[str, Any]):
    assert_independent_of_order_and_of_other_groups(
        lambda batch: gagpo_advantages(batch, eps=1e-3, **chosen), rollouts, chosen["advantage_norm"] != "batch"
    )


@few
@given(rollout_lists())
def test_limits(rollouts: list[Rollout]):
    batch = make_batch([r._replace(penalties=None) for r in rollouts])
    mask = batch.turn_mask
    # gamma = lam = 1: R - V.
    returns = discounted_returns(batch.rewards, mask, 1.0)
    values = grouped_mean(returns, state_keys(batch), mask)
    actual = gagpo_advantages(batch, 1.0, 1.0, advantage_norm="none")
    torch.testing.assert_close(actual, returns - values, rtol=0, atol=1e-9)
    # lam = 0: the one-turn error.
    returns = discounted_returns(batch.rewards, mask, 0.95)
    values = grouped_mean(returns, state_keys(batch), mask)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = torch.where(mask, batch.rewards + 0.95 * following - values, 0.0)
    actual = gagpo_advantages(batch, 0.95, 0.0, advantage_norm="none")
    torch.testing.assert_close(actual, delta, rtol=0, atol=1e-9)


@few
@given(rollout_lists(), st.sampled_from(["group", "anchor", "batch", "none"]), st.sampled_from([0.0, 1e-6]))
def test_singletons_have_exactly_no_advantage(rollouts: list[Rollout], norm: str, eps: float):
    numbers = iter(range(100))
    rollouts = [r._replace(states=[next(numbers) for _ in r.states], penalties=None) for r in rollouts]
    for leave_one_out in (False, True):
        actual = gagpo_advantages(make_batch(rollouts), advantage_norm=norm, leave_one_out=leave_one_out, eps=eps)
        assert not actual.any()


@few
@given(rollout_lists(), st.integers(1, 5), options)
def test_equal_rollouts_have_exactly_no_advantage(rollouts: list[Rollout], copies: int, chosen: dict[str, Any]):
    # Copies of one rollout that visits no state twice: all visits of a state have equal returns.
    states = list(range(len(rollouts[0].states)))
    first = rollouts[0]._replace(states=states, terminated=True, penalties=None)
    chosen = {**chosen, "singleton_value": "self", "eps": 0.0}
    assert not gagpo_advantages(make_batch([first] * copies), **chosen).any()


def test_one_turn_rollouts_are_compared_like_grpo():
    # Same state, returns 1, 0, 0, 0: R - V = 0.75, -0.25 x 3; std = sqrt(0.1875) = 0.4330.
    rollouts = [Rollout(0, [r], [A]) for r in (1.0, 0.0, 0.0, 0.0)]
    std = math.sqrt(0.1875)
    close(gagpo_advantages(make_batch(rollouts)), [[0.75 / std]] + [[-0.25 / std]] * 3)


def test_rollouts_without_turns_change_nothing():
    rollouts = [*EXAMPLE, Rollout(0, [], [], terminated=False)]
    with_empty = gagpo_advantages(make_batch(rollouts), episode_advantage_weight=1.0, truncation_bootstrap=True)
    without = gagpo_advantages(make_batch(EXAMPLE), episode_advantage_weight=1.0, truncation_bootstrap=True)
    torch.testing.assert_close(with_empty[:2], without)
    assert not with_empty[2].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_the_batch_is_not_written(dtype: torch.dtype):
    batch, copy = make_batch(EXAMPLE, dtype), make_batch(EXAMPLE, dtype)
    assert gagpo_advantages(batch, truncation_bootstrap=True, episode_advantage_weight=1.0).dtype == dtype
    for name in ("rewards", "turn_mask", "group_ids", "anchor_ids", "terminated", "final_anchor_ids"):
        assert torch.equal(getattr(batch, name), getattr(copy, name))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("gamma", 1.5, "gamma must be in"),
        ("lam", -0.5, "lam must be in"),
        ("advantage_norm", "rollout", "advantage_norm must be one of .*'anchor'"),
        ("singleton_value", "zero", "singleton_value must be one of .*'group_mean'"),
        ("eps", -1.0, "eps must not be negative"),
    ],
)
def test_errors_name_the_option(option: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        gagpo_advantages(make_batch(EXAMPLE), **{option: value})


def test_truncation_bootstrap_without_final_states_is_an_error():
    batch = replace(make_batch(EXAMPLE), final_anchor_ids=None)
    with pytest.raises(ValueError, match="truncation_bootstrap.*final_anchor_ids"):
        gagpo_advantages(batch, truncation_bootstrap=True)
    gagpo_advantages(batch)
