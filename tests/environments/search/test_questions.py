import json
import os
from dataclasses import replace

import pytest
from datasets import Dataset

from trl_agentic.environments import SearchEnv
from trl_agentic.environments.search import DATASETS, BM25Retriever, load_questions


# A row of each release, with the columns and types that it has there; and what must become of it.
ROWS = {
    "hotpotqa": (
        {"id": "5a", "question": "Are both rivers?", "answer": "yes", "type": "comparison", "level": "hard"},
        ["yes"],
    ),
    "2wikimultihopqa": (
        {"id": "a1", "question": "Who is it?", "context": {"title": ["A"]}, "type": "compositional", "answer": "Ida"},
        ["Ida"],
    ),
    "musique": (
        {"id": "2hop", "question": "Where?", "answer": "USA", "answer_aliases": ["US", "USA"], "answerable": True},
        ["USA", "US"],
    ),
    "bamboogle": ({"Question": "Who?", "Answer": "Ida Falk"}, ["Ida Falk"]),
    "nq": ({"question": "when", "answer": ["May 18 , 2018", "2018"]}, ["May 18 , 2018", "2018"]),
    "triviaqa": (
        {
            "question": "Which?",
            "question_id": "tc_1",
            "answer": {"aliases": ["Sunset Blvd", "Sunset Bulevard"], "value": "Sunset Boulevard"},
        },
        ["Sunset Boulevard", "Sunset Blvd", "Sunset Bulevard"],
    ),
    "popqa": (
        {"id": 4, "subj": "Ida", "prop": "job", "question": "What?", "possible_answers": '["politician", "polit."]'},
        ["politician", "polit."],
    ),
    "flashrag": ({"id": "test_0", "question": "who", "golden_answers": ["Wilhelm", "Conrad"]}, ["Wilhelm", "Conrad"]),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_columns_of_the_releases(name, kind, tmp_path):
    row, answers = ROWS[name]
    path = tmp_path / f"{name}.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    else:
        Dataset.from_list([row, row]).to_parquet(path)
    question = row.get("question") or row["Question"]
    assert load_questions(path, "train") == [{"question": question, "ground_truth": answers, "task_type": name}] * 2


def test_names_and_the_splits_that_papers_use():
    assert sorted(DATASETS) == ["2wikimultihopqa", "bamboogle", "hotpotqa", "musique", "nq", "popqa", "triviaqa"]
    assert {name for name, source in DATASETS.items() if source.splits["test"] == "dev"} == {
        "hotpotqa",
        "2wikimultihopqa",
        "musique",
    }
    assert {name for name, source in DATASETS.items() if "train" not in source.splits} == {"bamboogle", "popqa"}
    with pytest.raises(ValueError, match="The data set popqa has no split 'train', only test"):
        load_questions("popqa", "train")


def test_a_data_set_by_its_name(tmp_path, monkeypatch):
    """A folder stands in for the collection on the Hub: a configuration for each data set, with its own splits."""
    (tmp_path / "dev.jsonl").write_text(json.dumps({"question": "Who?", "golden_answers": ["Ida", "Falk"]}) + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: hotpotqa\n  data_files:\n  - split: dev\n    path: dev.jsonl\n---\n"
    )
    monkeypatch.setitem(DATASETS, "hotpotqa", replace(DATASETS["hotpotqa"], repository=str(tmp_path)))
    expected = [{"question": "Who?", "ground_truth": ["Ida", "Falk"], "task_type": "hotpotqa"}]
    assert load_questions("hotpotqa", "test") == expected


def test_questions_of_a_file_in_the_environment(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"Q{i}?", "answer": f"A{i}"}) + "\n" for i in range(20)))
    corpus = BM25Retriever(["Some text."])
    env = SearchEnv(questions=path, retriever=corpus, action_format="plain")
    assert [row["question"] for row in env.tasks()] == [f"Q{i}?" for i in range(20)]
    row = env.tasks()[3]
    env.reset(**row)
    assert env.step("answer A3").reward == 1.0
    drawn = [SearchEnv(questions=path, retriever=corpus, num_questions=5, seed=seed).tasks() for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] or drawn[0] != drawn[3]
    assert {len(rows) for rows in drawn} == {5}


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path, reads = tmp_path / "own.jsonl", []
    monkeypatch.setattr(
        "trl_agentic.environments.search.env.load_questions",
        lambda source, split: reads.append(source) or load_questions(source, split),
    )
    corpus = BM25Retriever(["Some text."])
    for round_number in range(2):
        path.write_text(json.dumps({"question": f"Q{round_number}?", "answer": "A"}) + "\n")
        os.utime(path, (round_number, round_number))
        for _ in range(3):
            rows = SearchEnv(questions=path, retriever=corpus).tasks()
            assert [row["question"] for row in rows] == [f"Q{round_number}?"]
            rows[0]["ground_truth"].append("B")  # a caller's rows are its own
    assert len(reads) == 2
    assert SearchEnv(questions=path, retriever=corpus).tasks()[0]["ground_truth"] == ["A"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "q.jsonl is empty"),
        ('{"query": "x", "answer": "y"}', "none of the columns question, Question, only query, answer: rename"),
        (
            '{"question": "x", "target": "y"}',
            "none of the columns ground_truth, golden_answers.*holds the ground truth",
        ),
        ('{"question": "x", "answer": "y"}\n{"question": " ", "answer": "y"}', "Row 1 of .*q.jsonl has no question"),
        ('{"question": "x", "answer": ""}', "Row 0 of .*q.jsonl has no answer: its column `answer` is empty"),
        ('{"question": "x", "answer": null}', "Row 0 of .*q.jsonl has no answer"),
        ('{"question": "x", "golden_answers": []}', "Row 0 of .*q.jsonl has no answer"),
    ],
)
def test_faulty_files_are_named(lines, message, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        load_questions(path, "train")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.parquet"):
        load_questions(tmp_path / "nowhere.parquet", "train")


def test_an_answer_in_brackets_that_is_no_list(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "x", "answer": "[sic] yes"}\n')
    assert load_questions(path, "train")[0]["ground_truth"] == ["[sic] yes"]
