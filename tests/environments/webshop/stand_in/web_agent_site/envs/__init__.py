"""Stands in for upstream's module: the same names, arguments and answers, with this package's shop inside.

What is kept of upstream's ways: the server is shared on request and holds every session until someone takes it away, a
session that is known keeps its goal, whatever number comes with it, only a plain `int` chooses a goal, and a purchase
can be repeated.
"""

import random
import string

from tests.environments.webshop.shop import shop_of_stand_in
from trl_agentic.environments.webshop import WebShopEngine


class SimServer:
    def __init__(self, human_goals):
        self.catalogue = shop_of_stand_in()
        self.drawn = random.random()  # upstream draws its prices from here
        self.goals = [{**goal.to_dict(), "weight": 1} for goal in self.catalogue.goals(bool(human_goals))]
        self.human_goals = human_goals
        self.user_sessions = {}


class WebAgentTextEnv:
    def __init__(self, observation_mode="html", file_path=None, server=None, **kwargs):
        assert set(kwargs) <= {"num_products", "human_goals", "session_prefix"}
        self.observation_mode = observation_mode
        self.server = SimServer(kwargs.get("human_goals")) if server is None else server
        self.session_prefix = kwargs.get("session_prefix")
        self.reset()

    def reset(self, session=None, instruction_text=None):
        name = "".join(random.choices(string.ascii_lowercase, k=10)) if session is None else str(session)
        self.session = (self.session_prefix or "") + name
        known = self.server.user_sessions
        if self.session not in known:
            number = session if isinstance(session, int) else random.randrange(len(self.server.goals))
            engine = WebShopEngine(self.server.catalogue, self.observation_mode, bool(self.server.human_goals))
            known[self.session] = {"engine": engine, "number": number}
        engine = known[self.session]["engine"]
        self.last = engine.reset(known[self.session]["number"])
        known[self.session]["options"] = engine.chosen
        return self.last.observation, None

    def step(self, action):
        session = self.server.user_sessions[self.session]
        if session["engine"].purchase is not None:
            return self.last.observation, session["engine"].purchase.total, True, None
        self.last = session["engine"].step(action)
        session["options"] = session["engine"].chosen
        return self.last.observation, self.last.reward, self.last.done, None

    def get_available_actions(self):
        return dict(self.last.available_actions)
