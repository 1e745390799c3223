"""What the recipes do by themselves. That their presets parse is tested with the docs."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser

from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import A2TGPOConfig, GAGPOConfig, GAGPOTrainer
from trl_agentic.environments.search import BM25Retriever, HTTPRetriever, RetrievalServer


RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a recipe, which finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(RECIPES)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    known = set(sys.modules)
    yield load
    for name in set(sys.modules) - known:
        if name in {path.stem for path in RECIPES.glob("*.py")}:
            del sys.modules[name]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_recipes_say_what_they_do(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_papers_protocol_of_a2tgpo(recipe: Any):
    parser = TrlParser((recipe("search_a2tgpo").SearchArguments, A2TGPOConfig, ModelConfig))
    preset = RECIPES / "configs" / "search_a2tgpo" / "qwen3-4b.yaml"
    search, training, model = parser.parse_args_and_config(
        ["--config", str(preset), "--use_cpu", "true", "--bf16", "0"]
    )
    assert model.model_name_or_path == "Qwen/Qwen3-4B"
    assert (search.passages, search.max_searches, search.format_penalty) == (3, 6, 1.0)
    gpus = 8
    rollouts_an_update = gpus * training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert (training.generation_batch_size // training.num_generations, training.num_generations) == (64, 16)
    assert (rollouts_an_update // training.num_generations, training.num_iterations) == (8, 1)
    assert (training.learning_rate, training.lr_scheduler_type) == (1e-6, "constant")
    assert (training.weight_decay, training.max_grad_norm, training.beta) == (0.01, 1.0, 0.0)
    assert (training.epsilon, training.epsilon_high, training.clip_beta) == (3e-3, 4e-3, 0.3)
    assert (training.alpha, training.gamma, training.rescale_accumulation) == (1.0, 1.0, True)
    assert (training.information_gain, training.answer_alias, training.turn_group_norm) == ("prob", "first", "turn")
    assert (training.temperature, training.eval_temperature) == (1.0, 0.0)
    assert (training.max_completion_length, training.loss_type) == (6192, "grpo")


def test_search_tasks(recipe: Any):
    module = recipe("search_a2tgpo")
    make = module.environment(module.SearchArguments(action_format="plain"), split="test")
    rows = module.tasks(make, "evaluation", ["1-hop", "3-hop"], 7)
    assert [row["task_type"] for row in rows] == ["1-hop", "3-hop"] * 3 + ["1-hop"]
    assert {row["environment"] for row in rows} == {"evaluation"}
    assert all(row["prompt"] == [] for row in rows)
    with pytest.raises(ValueError, match="`task_types`.*there are 1-hop, 2-hop, 3-hop, 4-hop"):
        module.tasks(make, "evaluation", ["5-hop"], None)


@pytest.fixture
def search_server() -> Iterator[str]:
    with RetrievalServer(BM25Retriever(["Ida Falk was born in Pine Hill."]), port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


GOOD = {"question": "Where was Ida Falk born?", "answer": "Pine Hill"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Who?"}], "none of the columns ground_truth, .*only question: rename"),
        ([GOOD, {"question": "Who?", "answer": " "}], "Row 1 of .*jsonl has no answer: its column `answer` is empty"),
        (
            [GOOD] * 3 + [{"question": "Who?", "answer": "\u241f"}],
            "Row 3 of the dataset has .* has no token in this model's",
        ),
        ([GOOD] * 4, "chat template of .* ignores `add_generation_prompt`"),
    ],
)
def test_search_errors_come_before_training(
    rows: list[dict[str, str]], message: str, recipe: Any, search_server: str, tiny_model_dir: Any, tmp_path: Path
):
    """From the command line: nothing is sampled until the questions, the retriever and the template are right."""
    questions = tmp_path / "own.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("qwen2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["\u241f"]})
    if rows == [GOOD] * 4:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        )
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir("qwen2"))
    for saved in (tokenizer, policy):
        saved.save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match=message):
        run_search(
            recipe, "--questions", str(questions), "--retriever_url", search_server, "--action_format", "tags",
            "--model_name_or_path", str(tmp_path / "policy"), "--output_dir", str(tmp_path / "out"),
        )  # fmt: skip
    assert not (tmp_path / "out" / "trajectories_before.parquet").exists()


def test_search_without_a_retriever(recipe: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="`retriever_url` is missing: the questions of nq need a server"):
        run_search(recipe, "--questions", "nq")
    monkeypatch.setattr(recipe("search_a2tgpo"), "HTTPRetriever", partial(HTTPRetriever, retries=0))
    with pytest.raises(ConnectionError, match="The retriever at http://127.0.0.1:9/retrieve does not serve"):
        run_search(recipe, "--questions", "nq", "--retriever_url", "http://127.0.0.1:9/retrieve")


def run_search(recipe: Any, *arguments: str) -> None:
    """As `python recipes/search_a2tgpo.py --config ... ARGUMENTS`."""
    module = recipe("search_a2tgpo")
    preset = RECIPES / "configs" / "search_a2tgpo" / "ci.yaml"
    parser = TrlParser((module.SearchArguments, A2TGPOConfig, ModelConfig))
    rest = ["--task_types", "own", "--use_cpu", "true"]
    module.main(*parser.parse_args_and_config(["--config", str(preset), *rest, *arguments]))


def test_search_demonstrations(recipe: Any):
    """Every hasty player ends with an answer; with haste 1 no question of two hops is answered right."""
    module = recipe("search_warm_start")
    course = module.Course("haste", 7, 40, 1e-3, noise=0.0, haste=1.0)
    episodes = module.play(course, seed=0)
    assert 30 < len(episodes) <= 40 and min(map(len, episodes)) == 2
    assert all(episode[-1].answer.startswith("answer ") for episode in episodes)
    two_hops = [episode for episode in episodes if " of the " in episode[0].observation]
    assert two_hops and all(episode[-1].imitate for episode in two_hops)
    for episode in two_hops:  # what is answered stands in the first passage that was found, behind the entity's name
        entity = episode[0].observation.split(" of ")[-1].removesuffix(".")
        assert f"1. {entity} " in episode[-1].observation
        assert episode[-1].answer.removeprefix("answer ") in episode[-1].observation


def test_a_run_that_goes_on_keeps_its_evaluation_of_before(recipe: Any, tiny_model_dir: Any, tmp_path: Path):
    def run(steps: int, **changes: Any) -> GAGPOTrainer:
        args = small_config(GAGPOConfig, tmp_path, max_steps=steps, save_strategy="steps", save_steps=1, **changes)
        trainer = GAGPOTrainer(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
        recipe("train_and_evaluate").train_and_evaluate(trainer, list(tasks(4)), "corridors", "Out")
        return trainer

    run(1)
    before = (tmp_path / "trajectories_before.parquet").read_bytes()
    results = json.loads((tmp_path / "results.json").read_text())
    trainer = run(2, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2
    assert (tmp_path / "trajectories_before.parquet").read_bytes() == before
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["before"] == results["before"] and again["after"]["All"][1] == 4
    assert "| task type | before training: `Corridor` | after training: `Corridor` |" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")


def test_a_run_that_goes_on_elsewhere_says_whose_evaluation_it_tells(
    recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    evaluated: list[str] = []
    callback = recipe("train_and_evaluate").EvaluateBefore(
        lambda: evaluated.append("played"), tmp_path / "none.parquet", evaluated.extend
    )
    callback.on_train_begin(None, SimpleNamespace(global_step=5), None)
    assert evaluated == ["played"]
    assert "none.parquet does not exist" in caplog.text and "the checkpoint at step 5" in caplog.text


@pytest.mark.parametrize("size", ["1.5b", "7b"])
def test_the_protocol_of_the_comparisons_on_webshop(recipe: Any, size: str):
    parser = TrlParser((recipe("webshop_gagpo").WebShopArguments, GAGPOConfig, ModelConfig))
    preset = RECIPES / "configs" / "webshop_gagpo" / f"qwen2.5-{size}.yaml"
    shop, training, model = parser.parse_args_and_config(["--config", str(preset), "--use_cpu", "true", "--bf16", "0"])
    assert model.model_name_or_path == f"Qwen/Qwen2.5-{size.upper()}-Instruct"
    assert (shop.max_steps_per_goal, shop.mode, shop.human_goals, shop.reward_mode) == (15, "text", False, "success")
    assert (training.context, training.history_length, training.max_turns) == ("window", 2, 15)
    rollouts = 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert (rollouts // training.num_generations, training.num_generations, training.max_steps) == (16, 8, 150)
    assert (training.invalid_action_penalty, training.gamma, training.lam) == (0.1, 0.95, 0.8)


def test_webshop_demonstrations(recipe: Any):
    """Every course has shops of its own; the shop that is trained and evaluated in is none of them."""
    module = recipe("webshop_warm_start")
    course = module.Course("acting", 30)
    episodes = module.play(1, course, seed=0)
    assert len(episodes) == 30
    for episode in episodes:
        assert {turn.answer.partition("[")[0] for turn in episode[1:]} == {"click"}
        assert episode[0].answer.startswith("search[") and episode[-1].answer == "click[buy now]"
    assert module.play(1, course, seed=0) == episodes
    assert module.play(2, course, seed=0)[0] != episodes[0]
    assert module.play(1, course._replace(lists_only=True), seed=0) == [episode[1:2] for episode in episodes]


def test_loss_on_the_answers_alone(recipe: Any):
    """What is trained on equals the model's own loss with the same labels."""
    module = recipe("small_policy")
    turns = [module.ShownTurn("a page", "click[one]"), module.ShownTurn("a page", "click[two]", imitate=False)]
    tokenizer = module.build_tokenizer(["a page click[one] click[two]"] * 3, 300, lowercase=True)
    model = module.build_model(tokenizer, 32, 1)
    batch = {
        name: torch.tensor([row]) for name, row in next(module.training_sequences([turns], tokenizer, False)).items()
    }
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    counted = batch["labels"][batch["labels"] != -100]
    assert tokenizer.decode(counted) == "click[one]<|end|>"
    trainer = module.Imitation(model=model, args=module.sft_defaults("unused"))
    torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss)
