"""The small policy that ships with the package: it loads, it plays, and what is written about it is true."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_agentic.environments import WebShopEnv
from trl_agentic.environments.webshop import small_policy
from trl_agentic.evaluation.players import ModelPlayer
from trl_agentic.evaluation.run import evaluate
from trl_agentic.rollout.engines import Sampling


def test_what_is_written_beside_it():
    made = json.loads((small_policy() / "warm_start.json").read_text())
    assert (Path(__file__).parents[3] / made["script"]).is_file()
    assert made["eval"]["goals"] == 200
    assert sum(file.stat().st_size for file in small_policy().iterdir()) < 10 * 2**20


def test_it_loads_and_a_product_number_survives_its_tokens():
    tokenizer = AutoTokenizer.from_pretrained(small_policy())
    model = AutoModelForCausalLM.from_pretrained(small_policy())
    assert 0.5e6 < model.num_parameters() < 1e6
    assert tokenizer.tokenize("click[p17x04]") == ["click[", "p1", "7", "x04", "]"]
    assert tokenizer.decode(tokenizer("click[p17x04]")["input_ids"]) == "click[p17x04]"


def test_it_searches_and_buys(tmp_path: Path):
    make = partial(
        WebShopEnv, "eval", num_goals=12, action_format="plain", show_admissible=False, instructions="", max_steps=8
    )
    player = ModelPlayer.from_pretrained(str(small_policy()), Sampling(0.0), dtype="float32", max_turn_tokens=32)
    settings = {"policy": "small", "environment": "webshop"}
    result = evaluate(player, make, make().tasks(), tmp_path, settings)
    assert result["invalid_action_rate"] < 0.3
    assert result["success"]["All"]["score"] > 0.4
