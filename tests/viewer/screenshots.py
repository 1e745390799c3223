"""Screenshots of the viewer for docs/images, from saved trajectories: python tests/viewer/screenshots.py FILE ROLLOUT

A Chromium or Chrome must be installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    from tests.viewer.browser import Browser, find_browser
    from trl_agentic.evaluation import load_records
    from trl_agentic.viewer import render_page

    program = find_browser()
    if program is None:
        sys.exit("No Chromium and no Chrome is installed.")
    records, rollout = load_records(sys.argv[1]), sys.argv[2]
    images = ROOT / "docs" / "images"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(render_page({"training": records}, "GAGPO on ALFWorld"), encoding="utf-8")
        browser = Browser(program, Path(folder) / "profile")
        for name, view, scheme in (
            ("viewer_light", "rollout", "light"),
            ("viewer_dark", "rollout", "dark"),
            ("viewer_group", "group", "light"),
        ):
            browser.open(page, f"rollout={rollout}&turn=0&view={view}")
            browser.screenshot(images / f"{name}.png", scheme)
        browser.close()
        assert browser.problems == []


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
