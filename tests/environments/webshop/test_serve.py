"""The shop as web pages, over HTTP on the loopback interface."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.environments.webshop.shop import INSTRUCTIONS, RECORDS, small_shop
from trl_agentic.environments.webshop import WebShopCatalogue, WebShopEngine, demonstration


pytest.importorskip("flask", reason="needs pip install trl-agentic[webshop-serve]")

from werkzeug.serving import make_server

from trl_agentic.environments.webshop import serve


class Visitor:
    """A browser: follows redirects, remembers where it is."""

    def __init__(self, base: str):
        self.base = base

    def get(self, path: str = "/") -> str:
        return self._open(path if path.startswith("http") else self.base + path)

    def post(self, path: str, **form: str) -> str:
        return self._open(path if path.startswith("http") else self.base + path, urlencode(form).encode())

    def start(self, goal: int) -> str:
        return self.post("/start", goal=str(goal))

    def act(self, action: str) -> str:
        return self.post(self.address, action=action)

    def _open(self, address: str, body: bytes | None = None) -> str:
        with urlopen(address, body, timeout=10) as answer:
            self.address = answer.url
            return answer.read().decode()


@pytest.fixture(scope="module")
def shops() -> Iterator[list]:
    servers: list = []
    yield servers
    for server in servers:
        server.shutdown()


def open_shop(shops: list, catalogue: WebShopCatalogue) -> Visitor:
    server = make_server("127.0.0.1", 0, serve.create_app(catalogue), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shops.append(server)
    return Visitor(f"http://127.0.0.1:{server.server_port}")


def texts(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_a_goal_is_played_by_hand(shops: list, generated: WebShopCatalogue):
    visitor = open_shop(shops, generated)
    assert f"{len(generated.goals())} goals" in texts(visitor.get())
    steps, _ = demonstration(WebShopEngine(generated), 7)
    page = visitor.start(7)
    assert generated.goals()[7].instruction in texts(page)
    for step in steps:
        if step.action.startswith("click["):  # it is a button of the page
            assert step.action.lower() in unescape(page).lower()
        page = visitor.act(step.action)
    assert 'id="reward"' in page
    assert "x 1" in texts(page)


def test_the_reward_is_explained_term_by_term(shops: list, catalogue: WebShopCatalogue):
    """Goal 0 to 3 want a hand made mug of 25 dollars and one of two sizes and colours; bought without choosing."""
    visitor = open_shop(shops, catalogue)
    goal = catalogue.goals()[0]
    visitor.start(0)
    visitor.post(visitor.address, words="blue clay mug")
    visitor.act("click[B000000001]")
    size = dict(goal.options)["size"]
    assert f"Chosen: size: {size}" in texts(visitor.act(f"click[{size}]"))
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", visitor.act("click[buy now]"))
    color = dict(goal.options)["color"]
    assert rows == [
        ("attribute: hand made", "found", "1"),
        (f"option: color: {color}", "not chosen", "0"),
        (f"option: size: {size}", "chosen", "1"),
        (f"price: at most ${goal.price_upper:.2f}", "$25.00", "1"),
        ("kind of product", "title nouns shared: 1.00; same search: yes; same place in the shop: yes", "x 1"),
        ("reward", "3 of 4 x 1", "0.75"),
    ]


def test_all_text_is_escaped(shops: list, tmp_path: Path):
    evil = "<script>alert('x')</script> \"&"
    shop = small_shop(
        tmp_path,
        records=[
            {
                **RECORDS[0],
                "name": evil,
                "full_description": evil,
                "small_description": [evil],
                "customization_options": {evil: [{"value": evil, "image": ""}]},
            },
            *RECORDS[1:],
        ],
        instructions={"B000000001": {**INSTRUCTIONS["B000000001"], "instruction": evil}},
        nouns={evil: ["mug"]},
    )
    visitor = open_shop(shops, shop)
    value = evil.replace("/", " | ").lower()
    seen = [visitor.get(), visitor.start(0), visitor.post(visitor.address, words=f"mug {evil}")]
    seen += [visitor.act(f"click[{text}]") for text in ("b000000001", value, "description", "< prev", "features")]
    seen += [visitor.act(evil), visitor.act("click[< prev]"), visitor.act("click[buy now]")]
    for page in seen:
        assert "<script" not in page.lower()
    assert all("alert(" in page for page in seen[1:]), "the texts are shown"


def test_visitors_do_not_meet(shops: list, generated: WebShopCatalogue):
    first = open_shop(shops, generated)
    second = Visitor(first.base)
    first.start(0)
    page = second.start(0)
    assert first.address != second.address
    first.post(first.address, words="desk lamp")
    assert second.get(second.address) == page


def test_old_sessions_are_forgotten(shops: list, generated: WebShopCatalogue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "SESSIONS", 3)
    visitors = [open_shop(shops, generated)]
    visitors += [Visitor(visitors[0].base) for _ in range(3)]
    for visitor in visitors:
        visitor.start(1)
    with pytest.raises(HTTPError, match="404"):
        visitors[0].get(visitors[0].address)
    visitors[1].get(visitors[1].address)


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/start", {"goal": "-1"}, 400),
        ("/start", {"goal": "one"}, 400),
        ("/start", {}, 400),
        ("/shop/nobody", {"action": "click[buy now]"}, 404),
        ("/shop/{here}", {"action": ""}, 400),
        ("/shop/{here}", {"action": "x" * 2001}, 400),
    ],
)
def test_bad_requests(shops: list, generated: WebShopCatalogue, path: str, form: dict[str, str], status: int):
    visitor = open_shop(shops, generated)
    visitor.start(0)
    path = path.replace("{here}", visitor.address.rsplit("/", 1)[1])
    with pytest.raises(HTTPError, match=str(status)):
        visitor.post(path, **form)


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        serve.main(["--data_dir", str(tmp_path / "nowhere")])
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        serve.main(["--human_goals", "--num_products", "10"])
    assert "None of the 10 products has instructions that people wrote" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted():
    command = [sys.executable, "-m", "trl_agentic", "webshop", "serve", "--port", "0", "--num_products", "30"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heard
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.search(r"Serving 30 products at (http://127\.0\.0\.1:\d+)/", said)
            assert address is not None, said
            assert "30 products" in texts(Visitor(address[1]).get())
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "Stopped.\n"
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
