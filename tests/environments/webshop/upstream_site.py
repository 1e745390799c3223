"""Stands in for upstream's web site: its addresses, forms and marks, with this package's shop behind them."""

from __future__ import annotations

import json
from ast import literal_eval
from typing import Any

from flask import Flask, redirect, render_template_string, request, url_for

from tests.environments.webshop.shop import shop_of_stand_in
from trl_agentic.environments.webshop.pages import BUY, NEXT, PREVIOUS, SUB_PAGES, on_page


HEAD = """<!DOCTYPE html><html><head><title>Hidden</title><style>h4 { color: red }</style></head><body>
<div id="instruction-text"><h4>Instruction:<br>{{ instruction }}</h4></div>
<form method="post" action="{{ url_for('index', session_id=session) }}">
  <button type="submit" class="btn btn-success">Back to Search</button>
</form>
"""
BUTTON = """{% macro button(text, where) %}<form method="post" action="{{ where }}">
<button class="btn btn-primary" type="submit">{{ text }}</button></form>{% endmacro %}"""
SEARCH = """<html><body><h2>WebShop</h2><div id="instruction-text"><h4>Instruction: <br>{{ instruction }}</h4></div>
<form method="post" action="{{ url_for('index', session_id=session) }}">
  <input id="search_input" type="text" name="search_query" required/>
  <span><button class="btn btn-success" type="submit"><i class="icon"></i>Search</button></span>
</form></body></html>"""
RESULTS = """<h4>Page {{ page }} (Total results: {{ total }})</h4>
{% for text, where in buttons %}{{ button(text, where) }}{% endfor %}
<!-- <a class="product-link" href="/nowhere">an old layout</a> -->
{% for product, where in products %}<div><img src="x.jpg">
  <h4><a class="product-link" href="{{ where }}">{{ product.asin }}</a></h4>
  <h4>{{ product.title }}</h5><h5>{{ product.price_tag }}</h6></div>
{% endfor %}</body></html>"""
ITEM = """{{ button("< Prev", back) }}
{% for name, values in options %}<h4>{{ name }}</h4>{% for value, where in values %}
  <input type="radio" id="{{ name }}{{ loop.index }}" name="{{ name }}" value="{{ value }}" data-url="{{ where }}">
  <label for="{{ name }}{{ loop.index }}">{{ value }}</label>{% endfor %}{% endfor %}
<h2>{{ product.title }}</h2><h4>Price: {{ product.price_tag }}</h4><h4>Rating: N.A.</h4>
{% for text, where in buttons %}{{ button(text, where) }}{% endfor %}
<script>let text = "hidden";</script></body></html>"""
SUB_PAGE = """{{ button("< Prev", back) }}{% for text in texts %}<p> {{ text }}</p>{% endfor %}</body></html>"""
DONE = """<html><body><h1>Thank you for shopping with us!</h1><h4 id="asin">asin<pre>{{ asin }}</pre></p>
<h3 id="reward">Your score (min 0.0, max 1.0)<pre>{{ reward }}</pre></h3></body></html>"""


def create_site() -> Flask:
    app = Flask(__name__)
    shop = shop_of_stand_in()
    goals = shop.goals()
    sessions: dict[str, Any] = {}

    def show(template: str, session: str, **values: Any) -> str:
        instruction = sessions[session].instruction
        return render_template_string(BUTTON + template, session=session, instruction=instruction, **values)

    @app.route("/<session_id>", methods=["GET", "POST"])
    def index(session_id: str) -> Any:
        if session_id not in sessions:
            sessions[session_id] = goals[int(session_id.split("_")[-1])]
        if "search_query" in request.form:
            keywords = request.form["search_query"].lower().split(" ")
            return redirect(url_for("search_results", session_id=session_id, keywords=keywords, page=1))
        return show(SEARCH, session_id)

    @app.route("/search_results/<session_id>/<keywords>/<int:page>", methods=["GET", "POST"])
    def search_results(session_id: str, keywords: str, page: int) -> str:
        found = shop.search(" ".join(literal_eval(keywords)))
        here = {"session_id": session_id, "keywords": keywords}
        buttons = [(PREVIOUS, url_for("search_results", page=page - 1, **here))] if page > 1 else []
        buttons.append((NEXT, url_for("search_results", page=page + 1, **here)))
        products = [
            (product, url_for("item_page", asin=product.asin, page=page, options={}, **here))
            for product in on_page(found, page)
        ]
        values = {"page": page, "total": len(found), "buttons": buttons, "products": products}
        return show(HEAD + RESULTS, session_id, **values)

    @app.route("/item_page/<session_id>/<asin>/<keywords>/<int:page>/<options>", methods=["GET", "POST"])
    def item_page(session_id: str, asin: str, keywords: str, page: int, options: str) -> str:
        product, chosen = shop.product(asin), literal_eval(options)
        assert product is not None
        here = {"session_id": session_id, "asin": asin, "keywords": keywords, "page": page}
        values = [
            (name, [(value, url_for("item_page", options={**chosen, name: value}, **here)) for value in offered])
            for name, offered in product.options.items()
        ]
        buttons = [(name, url_for("item_sub_page", sub_page=name, options=options, **here)) for name in SUB_PAGES]
        buttons.append((BUY, url_for("done", session_id=session_id, asin=asin, options=options)))
        back = url_for("search_results", session_id=session_id, keywords=keywords, page=page)
        return show(HEAD + ITEM, session_id, back=back, options=values, product=product, buttons=buttons)

    @app.route(
        "/item_sub_page/<session_id>/<asin>/<keywords>/<int:page>/<sub_page>/<options>", methods=["GET", "POST"]
    )
    def item_sub_page(session_id: str, asin: str, keywords: str, page: int, sub_page: str, options: str) -> str:
        product = shop.product(asin)
        assert product is not None
        texts = {"Description": [product.description], "Features": product.bullets}.get(sub_page, [])
        back = url_for("item_page", session_id=session_id, asin=asin, keywords=keywords, page=page, options=options)
        return show(HEAD + SUB_PAGE, session_id, back=back, texts=texts)

    @app.route("/done/<session_id>/<asin>/<options>", methods=["GET", "POST"])
    def done(session_id: str, asin: str, options: str) -> str:
        product = shop.product(asin)
        assert product is not None
        reward = shop.reward(sessions[session_id], product, literal_eval(options).values())
        return show(DONE, session_id, asin=asin, reward=json.dumps(reward.total))

    return app
