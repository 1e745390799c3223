"""Questions to answer with a search engine."""

from .bm25 import BM25Retriever
from .dense import DenseRetriever
from .env import SearchEnv, world_retriever
from .oracle import Oracle, Step, demonstration
from .policy import small_policy
from .questions import DATASETS, load_questions
from .remote import HTTPRetriever
from .retrieval import Passage, Retriever, load_corpus
from .server import RetrievalServer
from .tools import SearchTools
from .world import Question, World, generate_world


__all__ = [
    "DATASETS",
    "BM25Retriever",
    "DenseRetriever",
    "HTTPRetriever",
    "Oracle",
    "Passage",
    "Question",
    "RetrievalServer",
    "Retriever",
    "SearchEnv",
    "SearchTools",
    "Step",
    "World",
    "demonstration",
    "generate_world",
    "load_corpus",
    "load_questions",
    "small_policy",
    "world_retriever",
]
