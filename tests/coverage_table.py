"""README's table of the tested combinations. `python tests/coverage_table.py` writes it again."""

from __future__ import annotations

import re
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- table of tests/coverage_table.py -->", "<!-- end of the table -->"


def table() -> str:
    """Algorithms x environments; in a cell the engines of `CASES` in tests/trainers/test_every_pair.py."""
    from tests.trainers.test_every_pair import CASES, ENVIRONMENTS, RULES

    lines = ["| | " + " | ".join(ENVIRONMENTS) + " |", "|---" * (len(ENVIRONMENTS) + 1) + "|"]
    for algorithm in RULES:
        engines = [[engine for a, e, engine in CASES if (a, e) == (algorithm, name)] for name in ENVIRONMENTS]
        lines.append(f"| `{algorithm}Trainer` | " + " | ".join(", ".join(cell) or "-" for cell in engines) + " |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """README with the table between its two marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n\n{table()}\n\n{END}", readme, flags=re.DOTALL
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
