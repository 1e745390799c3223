"""The shop to look at: its pages as HTML, a goal to play by hand, and the reward explained term by term.

trl-agentic webshop serve
"""

from __future__ import annotations

import argparse
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from .catalogue import WebShopCatalogue
from .engine import WebShopEngine
from .goals import SPLITS
from .reward import Goal, Reward


try:
    from flask import Flask, abort, redirect, render_template_string, request, url_for
    from werkzeug.wrappers import Response
except ImportError as error:
    raise ImportError("Serving the shop needs Flask: pip install trl-agentic[webshop-serve]") from error

from importlib.resources import files


SESSIONS = 1000
LONGEST_ACTION = 2000


class Term(NamedTuple):
    """One line of the explanation of a reward: what was asked for, what was got, and how it counts."""

    asked: str
    got: str
    counts: str


def explain(goal: Goal, reward: Reward, price: float) -> list[Term]:
    """The reward of a purchase, term by term.

    Args:
        goal ([`Goal`]): what was wanted.
        reward ([`Reward`]): what the purchase is worth.
        price (`float`): what it cost, in dollars.
    """
    terms = [
        Term(f"attribute: {wanted}", "found" if met else "not found", f"{int(met)}")
        for wanted, met in zip(goal.attributes, reward.attributes, strict=True)
    ]
    for option, met in zip(goal.options, reward.options, strict=True):
        wanted = option if isinstance(option, str) else ": ".join(option)
        terms.append(Term(f"option: {wanted}", "chosen" if met else "not chosen", f"{int(met)}"))
    limit = "any price" if goal.price_upper >= 1e6 else f"at most ${goal.price_upper:.2f}"
    terms.append(Term(f"price: {limit}", f"${price:.2f}", f"{int(reward.price)}"))
    fulfilled, count = sum(reward.attributes) + sum(reward.options) + reward.price, len(terms)
    kind = f"title nouns shared: {reward.title_score:.2f}"
    kind += f"; same search: {'yes' if reward.same_query else 'no'}"
    kind += f"; same place in the shop: {'yes' if reward.same_category else 'no'}"
    terms.append(Term("kind of product", kind, f"x {reward.type_factor:g}"))
    terms.append(Term("reward", f"{fulfilled} of {count} x {reward.type_factor:g}", f"{reward.total:.4g}"))
    return terms


class _Sessions:
    """Sessions of visitors, of which the oldest is forgotten when there are more than `SESSIONS`."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, WebShopEngine] = OrderedDict()
        self.lock = Lock()

    def start(self, engine: WebShopEngine) -> str:
        """Adds a session and returns its name."""
        name = secrets.token_urlsafe(12)
        with self.lock:
            self._engines[name] = engine
            if len(self._engines) > SESSIONS:
                self._engines.popitem(last=False)
        return name

    def find(self, name: str) -> WebShopEngine:
        """The session of that name, or error 404. The lock must be held."""
        if name not in self._engines:
            abort(404, "This session is over: start a new one.")
        self._engines.move_to_end(name)
        return self._engines[name]


def create_app(catalogue: WebShopCatalogue, human_goals: bool = False) -> Flask:
    """A shop that a person can walk through.

    Each visit has its own session, whose address contains a random text; the oldest of more than 1,000 is forgotten.
    All text of the catalogue, the goals and the visitors is escaped.

    Args:
        catalogue ([`WebShopCatalogue`]): the shop.
        human_goals (`bool`, *optional*, defaults to `False`): play the goals that people wrote.

    Raises:
        ValueError: the catalogue has no such goals.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    goals = catalogue.goals(human_goals)
    template = files(__package__).joinpath("data", "shop.html").read_text(encoding="utf-8")
    sessions = _Sessions()

    @app.get("/")
    def index() -> str:
        shown = [(name, list(range(len(goals))[numbers])[:5]) for name, numbers in SPLITS.items()]
        return render_template_string(template, engine=None, goals=goals, splits=shown, products=len(catalogue))

    @app.post("/start")
    def start() -> Response:
        number = request.form.get("goal", type=int)
        if number is None or not 0 <= number < len(goals):
            abort(400, f"`goal` must be a number from 0 to {len(goals) - 1}.")
        engine = WebShopEngine(catalogue, human_goals=human_goals)
        engine.reset(number)
        return redirect(url_for("show", name=sessions.start(engine)), 303)

    @app.get("/shop/<name>")
    def show(name: str) -> str:
        with sessions.lock:
            engine = sessions.find(name)
            terms: list[Term] = []
            if engine.purchase is not None and engine.product is not None:
                terms = explain(engine.goal, engine.purchase, catalogue.price(engine.product))
            return render_template_string(
                template, engine=engine, name=name, pieces=list(engine.page()), terms=terms, bar=engine.has_search_bar
            )

    @app.post("/shop/<name>")
    def act(name: str) -> Response:
        action = request.form.get("action", "")
        if "words" in request.form:
            action = f"search[{request.form['words']}]"
        if not action or len(action) > LONGEST_ACTION:
            abort(400, f"`action` must be a text of 1 to {LONGEST_ACTION} characters.")
        with sessions.lock:
            sessions.find(name).step(action)
        return redirect(url_for("show", name=name), 303)

    return app


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog=prog, description="Serves the shop as web pages, to play a goal by hand.")
    parser.add_argument("--data_dir", help="folder of official files; a generated shop without it")
    parser.add_argument("--subset", help="which of the files, where the folder has several: _1000 for instance")
    parser.add_argument("--num_products", type=int, default=1000, help="number of generated products")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated products")
    parser.add_argument("--human_goals", action="store_true", help="goals that people wrote; needs --data_dir")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=3000, help="port to listen at; 0 for any free one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is interrupted.

    Args:
        argv (`Sequence[str]`, *optional*): arguments, as [`build_parser`] reads them; those of the process if `None`.
    """
    from werkzeug.serving import make_server

    parser = build_parser("trl-agentic webshop serve")
    arguments = parser.parse_args(argv)
    try:
        if arguments.data_dir is None:
            catalogue = WebShopCatalogue.generate(arguments.num_products, arguments.seed)
        else:
            catalogue = WebShopCatalogue.from_json(arguments.data_dir, subset=arguments.subset)
        app = create_app(catalogue, arguments.human_goals)
        server = make_server(arguments.host, arguments.port, app, threaded=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Serving {len(catalogue)} products at http://{arguments.host}:{server.server_port}/", flush=True)
    server.serve_forever()  # until Ctrl-C, which it takes for the wish to stop
    print("Stopped.")


if __name__ == "__main__":
    main()
