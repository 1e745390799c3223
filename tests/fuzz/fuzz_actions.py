"""Coverage-guided fuzzing of the environments with atheris (`pip install atheris`, Linux).

    python -m tests.fuzz.fuzz_actions -max_total_time=600 -max_len=400 [FOLDER OF SEEDS]

An input's first byte chooses the environment; the rest is an episode, its turns separated by form feeds. What crashes
goes to `corpus/` as a text file without the first byte, and so becomes a test.
"""

from __future__ import annotations

import sys

import atheris


with atheris.instrument_imports(include=["trl_agentic"]):
    from tests.fuzz.actions import ENVIRONMENTS, play

NAMES = sorted(ENVIRONMENTS)


def one_input(data: bytes) -> None:
    if data:
        play(NAMES[data[0] % len(NAMES)], data[1:].decode("utf-8", "replace").split("\f"))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
