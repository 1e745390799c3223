import importlib.util
import json

import numpy as np
import pytest
from datasets import Dataset

from trl_agentic.environments.search import BM25Retriever, DenseRetriever, Retriever, load_corpus


TEXTS = [
    "Silver Lantern was written by Ida Falk.",
    "Ida Falk was born in Pine Hill.",
    "Elm Bay lies on Swan River.",
    "Elm Bay lies on Swan River.",
]


def found(retriever: Retriever, query: str, k: int = 3) -> list[str]:
    (passages,) = retriever.search([query], k)
    scores = [passage.score for passage in passages]
    assert scores == sorted(scores, reverse=True)
    return [passage.contents for passage in passages]


def test_bm25_orders_passages():
    retriever = BM25Retriever(TEXTS)
    assert isinstance(retriever, Retriever)
    assert found(retriever, "ida falk BORN") == [TEXTS[1], TEXTS[0]]
    assert found(retriever, "Falk", k=1) == [TEXTS[0]] or found(retriever, "Falk", k=1) == [TEXTS[1]]
    assert found(retriever, "river", k=9) == [TEXTS[2], TEXTS[3]]
    assert [len(passages) for passages in retriever.search(["falk", "river", "qqq"], 1)] == [1, 1, 0]
    assert retriever.search([], 3) == []


@pytest.mark.parametrize("query", ["", "   ", "qqq", "the of", "?!", "\ud800", "x" * 100_000, "Falk" * 3])
def test_bm25_finds_nothing_where_there_is_nothing(query):
    assert found(BM25Retriever(TEXTS), query) == []


def test_bm25_by_hand():
    """Lucene's BM25: log(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))."""
    texts = ["apple", "apple apple pear", "plum pear"]
    (passages,) = BM25Retriever(texts, k1=0.9, b=0.4).search(["apple"], 3)
    rarity = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (1 + 3 + 2) / 3
    expected = [2 / (2 + 0.9 * (0.6 + 0.4 * 3 / mean)), 1 / (1 + 0.9 * (0.6 + 0.4 * 1 / mean))]
    assert [passage.contents for passage in passages] == [texts[1], texts[0]]
    assert [passage.score for passage in passages] == pytest.approx([rarity * part for part in expected], rel=1e-5)


def test_equal_scores_keep_the_order_of_the_corpus():
    texts = [f"filler {'x' * i}" for i in range(50)] + ["pear"] * 20
    retriever = BM25Retriever(texts)
    (passages,) = retriever.search(["filler"], 7)
    assert [passage.contents for passage in passages] == texts[:7]


def write_corpus(tmp_path, rows, kind):
    path = tmp_path / f"corpus.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_corpora(kind, tmp_path):
    rows = [{"id": str(i), "contents": text} for i, text in enumerate(TEXTS)]
    corpus = load_corpus(write_corpus(tmp_path, rows, kind))
    assert corpus["contents"][:] == TEXTS
    assert corpus.column_names == ["contents"]
    titled = load_corpus(write_corpus(tmp_path, [{"title": "Falk", "text": TEXTS[1]}], kind))
    assert titled["contents"][:] == [f'"Falk"\n{TEXTS[1]}']
    untitled = load_corpus(write_corpus(tmp_path, [{"text": TEXTS[1]}], kind))
    assert untitled["contents"][:] == [TEXTS[1]]
    # A folder of such files is read as a data set on the Hub is.
    assert load_corpus(tmp_path)["contents"][:] == [TEXTS[1]]


def test_the_index_is_built_once_and_read_from_disk(tmp_path, capfd):
    corpus = load_corpus(write_corpus(tmp_path, [{"contents": text} for text in TEXTS], "jsonl"))
    folder = tmp_path / "cache" / "index"
    capfd.readouterr()
    first = BM25Retriever(corpus, folder)
    assert "BM25S" in capfd.readouterr().err  # the bar
    built = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = BM25Retriever(corpus, folder)
    assert "BM25S" not in capfd.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == built
    assert isinstance(again._index.scores["data"], np.memmap)
    for query in ("ida falk born", "river", "qqq"):
        assert first.search([query], 3) == again.search([query], 3) == BM25Retriever(TEXTS).search([query], 3)
    assert list(folder.parent.iterdir()) == [folder]


def test_an_index_of_something_else_is_refused(tmp_path):
    BM25Retriever(TEXTS, tmp_path / "index")
    for texts, options in ((TEXTS[:2], {}), ([*TEXTS[:3], "Other text."], {}), (TEXTS, {"k1": 1.2})):
        with pytest.raises(ValueError, match=r"index holds no index of this corpus with k1=.*Remove it"):
            BM25Retriever(texts, tmp_path / "index", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no index of this corpus"):
        BM25Retriever(TEXTS, tmp_path / "empty")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "corpus.jsonl is empty"),
        ([{"body": "x"}], "neither a column `contents` nor a column `text`, only body: rename"),
        ([{"contents": 3}], "`contents` of the corpus .* must hold text, but its type is int64"),
    ],
)
def test_faulty_corpora_are_named(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_corpus(write_corpus(tmp_path, rows, "jsonl"))


def test_missing_and_empty_corpora(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file nowhere.jsonl"):
        load_corpus("nowhere.jsonl")
    with pytest.raises(ValueError, match="the corpus is empty"):
        BM25Retriever([])


needs_dense = pytest.mark.skipif(
    not (importlib.util.find_spec("faiss") and importlib.util.find_spec("sentence_transformers")),
    reason="needs the extra `dense`",
)


@pytest.fixture
def encoder(tmp_path, tiny_model_dir):
    """A tiny untrained model in the form that sentence-transformers loads."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(tiny_model_dir("qwen2")))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(tmp_path / "encoder"))
    return str(tmp_path / "encoder")


@needs_dense
@pytest.mark.filterwarnings("default")
def test_dense(encoder, tmp_path):
    retriever = DenseRetriever(
        TEXTS, tmp_path / "faiss" / "index", encoder, query_prefix="", passage_prefix="", device="cpu"
    )
    for text in TEXTS[:3]:  # nothing is nearer than the passage itself
        (passages,) = retriever.search([text], 2)
        assert passages[0].contents == text
        assert passages[0].score == pytest.approx(1.0, abs=1e-4)
        assert passages[1].score <= passages[0].score
    assert [len(passages) for passages in retriever.search(["a", "b"], 9)] == [4, 4]
    assert retriever.search([], 3) == []
    again = DenseRetriever(TEXTS, tmp_path / "faiss" / "index", encoder, query_prefix="", device="cpu")
    assert again.search(["falk"], 3) == retriever.search(["falk"], 3)
    with pytest.raises(ValueError, match="has 4 passages, but the corpus or model has 3. Remove"):
        DenseRetriever(TEXTS[:3], tmp_path / "faiss" / "index", encoder, device="cpu")
    with pytest.raises(ValueError, match="the corpus is empty"):
        DenseRetriever([], tmp_path / "other", encoder)
    whole = (tmp_path / "faiss" / "index").read_bytes()
    assert [path.name for path in (tmp_path / "faiss").iterdir()] == ["index"]
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no index of FAISS, or not a whole one. Remove it."):
        DenseRetriever(TEXTS, tmp_path / "half", encoder, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="the extra `dense` is installed")
def test_dense_names_its_extra(tmp_path):
    with pytest.raises(ImportError, match=r"pip install trl-agentic\[dense\]"):
        DenseRetriever(TEXTS, tmp_path / "index")
