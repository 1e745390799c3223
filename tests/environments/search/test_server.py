import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import requests

from trl_agentic.environments.search import (
    BM25Retriever,
    HTTPRetriever,
    Passage,
    RetrievalServer,
    Retriever,
    SearchEnv,
)
from trl_agentic.environments.search.server import build_parser, main


TEXTS = ["Silver Lantern was written by Ida Falk.", "Ida Falk was born in Pine Hill.", "Elm Bay lies on Swan River."]


@contextmanager
def running(server: http.server.HTTPServer) -> Iterator[http.server.HTTPServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def url() -> Iterator[str]:
    with running(RetrievalServer(BM25Retriever(TEXTS), port=0)) as server:
        yield server.url


def test_client_and_server_agree_with_the_retriever_itself(url):
    client, here = HTTPRetriever(url), BM25Retriever(TEXTS)
    assert isinstance(client, Retriever)
    queries = ["ida falk born", "river", "qqq", 'quote " \\ \n', "ünal \u2028"]
    for k in (1, 3):
        assert client.search(queries, k) == here.search(queries, k)
    assert client.search([], 3) == []


def test_the_form_of_search_r1(url):
    body = {"queries": ["falk born"], "topk": 1, "return_scores": True}
    ((item,),) = requests.post(url, json=body, timeout=10).json()["result"]
    assert item["document"] == {"contents": TEXTS[1]}
    assert item["score"] > 0
    assert requests.post(url, json={"queries": ["falk born"], "topk": 1}, timeout=10).json() == {
        "result": [[{"contents": TEXTS[1]}]]
    }
    assert len(requests.post(url, json={"queries": ["falk"]}, timeout=10).json()["result"][0]) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("no json", "Expecting value"),
        ("", "Expecting value"),
        ("[]", "the body must be a JSON object"),
        ("{}", "`queries` must be a list of texts"),
        ('{"queries": "falk"}', "`queries` must be a list of texts"),
        ('{"queries": [1]}', "`queries` must be a list of texts"),
        ('{"queries": [], "topk": 0}', "`topk` must be a number from 1, got 0"),
        ('{"queries": [], "topk": "3"}', "`topk` must be a number from 1, got '3'"),
    ],
)
def test_faulty_requests_are_answered(url, body, message):
    response = requests.post(url, data=body, timeout=10)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert requests.post(url, json={"queries": []}, timeout=10).json() == {"result": []}


def test_other_paths(url):
    assert requests.post(url.replace("retrieve", "x"), data="{}", timeout=10).status_code == 404


def test_an_episode_over_http(url):
    env = SearchEnv(num_questions=1, retriever=HTTPRetriever(url), action_format="plain")
    env.reset(question="Where was the author of Silver Lantern born?", ground_truth=["Pine Hill"])
    assert env.step("search Silver Lantern").observation == f"1. {TEXTS[0]}"
    assert env.step("search Ida Falk born").observation.startswith(f"1. {TEXTS[1]}")
    assert env.step("answer Pine Hill").reward == 1.0


class Slow:
    """Echoes the queries after a while, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.asked.append(len(queries))
        time.sleep(0.2)
        return [[Passage(f"{query} {i}", 1.0) for i in range(k)] for query in queries]


def test_threads_that_wait_share_a_request():
    slow, seen = Slow(), {}
    with running(RetrievalServer(slow, port=0)) as server:
        client = HTTPRetriever(server.url)

        def ask(number: int) -> None:
            k = 1 + number % 3
            (passages,) = client.search([f"q{number}"], k)
            seen[number] = [passage.contents for passage in passages]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {number: [f"q{number} {i}" for i in range(1 + number % 3)] for number in range(24)}
    assert sum(slow.asked) == 24
    assert len(slow.asked) <= 12  # one by one, there would be 24


def test_an_unreachable_server_is_named():
    with socket.socket() as reserved:  # a port that is bound refuses connections until it listens
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/retrieve"
        client = HTTPRetriever(url, retries=1)
        for _ in range(2):
            with pytest.raises(ConnectionError, match=rf"The retriever at {url} does not serve.*Is it running"):
                client.search(["falk"], 3)


class Moody(http.server.BaseHTTPRequestHandler):
    """Gives the answers that the server was made with, one after the other."""

    def do_POST(self) -> None:
        status, body = self.server.answers.pop(0)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def moody(*answers: tuple[int, str]) -> Iterator[tuple[str, list]]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Moody)
    server.answers = list(answers)
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}/retrieve", server.answers


GOOD = (200, json.dumps({"result": [[{"document": {"id": "7", "contents": "x"}, "score": 0.5}]]}))


def test_a_server_that_fails_for_a_while_is_asked_again():
    with moody((503, ""), (500, ""), GOOD) as (url, left):
        assert HTTPRetriever(url).search(["q"], 3) == [[Passage("x", 0.5)]]
        assert left == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, ""), "404"),
        ((200, "no json"), "does not serve"),
        ((200, "[]"), "not of the expected form"),
        ((200, '{"result": [["x"]]}'), "not of the expected form"),
        ((200, '{"result": [[{"contents": "x"}]]}'), r"not of the expected form \(KeyError: 'document'\)"),
        ((200, '{"result": []}'), "answers 0 of 1 queries"),
    ],
)
def test_other_answers_are_errors(answer, message):
    with moody(answer, GOOD) as (url, _):
        client = HTTPRetriever(url)
        with pytest.raises(ConnectionError, match=message):
            client.search(["q"], 3)
        assert client.search(["q"], 3) == [[Passage("x", 0.5)]]


def test_a_server_that_keeps_silent_is_not_waited_for():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = HTTPRetriever(f"http://127.0.0.1:{silent.getsockname()[1]}/retrieve", timeout=0.1, retries=0)
        with pytest.raises(ConnectionError, match="does not serve"):
            client.search(["q"], 3)


@pytest.mark.slow
def test_the_command_serves_a_corpus(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"contents": text}) + "\n" for text in TEXTS))
    module = "trl_agentic.environments.search.server"
    command = [
        sys.executable,
        "-m",
        module,
        "--corpus",
        str(corpus),
        "--index",
        str(tmp_path / "index"),
        "--port",
        "0",
    ]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heard
    ) as process:
        try:
            url = re.search(r"at (\S+)$", process.stdout.readline()).group(1)
            assert HTTPRetriever(url).search(["born"], 3) == BM25Retriever(TEXTS).search(["born"], 3)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere.jsonl", "--index", "x"], "There is no file nowhere.jsonl"),
        (["--corpus", "corpus.jsonl"], "`--index` is missing"),
        ([], "--corpus"),
        (["--corpus", "world", "--retriever", "sparse"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_help_names_every_argument():
    assert all(action.help for action in build_parser("trl-agentic retriever")._actions)
