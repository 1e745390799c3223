"""Viewer page as a file: it is self-contained, and no text of a rollout can become markup."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.viewer.pages import record, records
from trl_agentic import cli
from trl_agentic.records import save_records
from trl_agentic.viewer import render_page


NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "<img src=x onerror=alert(1)>",
    "]]></style>&lt;{{script}}{{data}}",
    "\u2028\u2029\0 \\u003c",
]


class Elements(HTMLParser):
    """Parser that collects the elements, and the text of each script by its id."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self._script: str | None = None
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside, self._script = tag == "script", dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def unpacked(page: str) -> dict[str, Any]:
    return json.loads(Elements(page).scripts["data"])


@pytest.mark.parametrize("text", NASTY)
def test_text_of_a_rollout_cannot_become_markup(text: str):
    plain = render_page({"a": records()})
    nasty = record(actions=(text, "take"), task_type=text, error=text, final_observation=text, stop_reason=text)
    nasty["task"] = json.dumps({"prompt": [{"role": "system", "content": text}]})
    nasty["turns"][0]["observation"] = nasty["turns"][0]["anchor_state"] = text
    page = render_page({text: [nasty]}, title=text)
    assert [tag for tag, _ in Elements(page).tags] == [tag for tag, _ in Elements(plain).tags]
    data = unpacked(page)
    assert text in data["strings"]
    assert "<" not in Elements(page).scripts["data"]


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    page = Elements(render_page({"a": records()}))
    assert not [attrs for _, attrs in page.tags if {"src", "href", "data"} & attrs.keys()]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    digest = b64encode(sha256(page.scripts[None].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_script_never_writes_markup():
    script = (Path(__file__).parents[2] / "trl_agentic/viewer/data/page.js").read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_all_fields_arrive_and_equal_texts_are_stored_once():
    data = unpacked(render_page({"run": records()}))
    rollout = dict(zip(data["rollout_fields"], data["rollouts"][1], strict=True))
    turn = dict(zip(data["turn_fields"], rollout["turns"][1], strict=True))
    assert (rollout["step"], rollout["success"], rollout["return"]) == (1, False, 0.0)
    assert data["strings"][rollout["task_type"]] == "Pick"
    assert data["strings"][turn["action"]] == "oops"
    assert (turn["value"], turn["advantage"], turn["clip_low"], turn["clip_high"]) == (0.5, -0.5, 0.8, 1.25)
    assert turn["information_gain"] is None
    assert (turn["is_action_valid"], turn["action_tokens"], turn["cut"]) == (False, 2, False)
    assert len(data["strings"]) == len(set(data["strings"]))


def test_rollouts_are_grouped_by_file_step_and_group_or_else_by_task():
    numbered = records()
    loose = [{**rollout, "step": None, "group": None} for rollout in records()]
    data = unpacked(render_page({"a": numbered, "b": loose, "c": numbered}))
    place = data["rollout_fields"].index("group")
    assert [rollout[place] for rollout in data["rollouts"]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_files_and_folders_are_put_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").mkdir()
    save_records(tmp_path / "run" / "step_000001.parquet", records())
    save_records(tmp_path / "after.parquet", records()[:1])
    output = tmp_path / "pages" / "page.html"
    cli.main(["view", str(tmp_path / "run"), str(tmp_path / "after.parquet"), "--output", str(output)])
    assert "5 rollouts in" in capsys.readouterr().out
    data = unpacked(output.read_text(encoding="utf-8"))
    assert {"run/step_000001.parquet", "after.parquet"} <= set(data["strings"])


def test_missing_and_broken_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="no rollouts to show"):
        render_page({"a": []})
    (tmp_path / "broken.parquet").write_text("nonsense")
    for path, message in (
        (tmp_path / "nowhere", "No trajectories"),
        (tmp_path, "broken.parquet is not a Parquet file"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["view", str(path), "--output", str(tmp_path / "page.html")])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
