"""Tests of the language: words that the project replaces by standard terms occur nowhere.

The checked files are the package, the recipes, the examples, the documentation and the build files. `WORDS` maps each
pattern to its replacement. A pattern also matches a part of a snake_case name, but no part of a longer word:
"mend" does not match "recommend".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CHECKED = (
    "trl_agentic/**/*",
    "recipes/**/*",
    "examples/**/*",
    "docs/**/*",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "NOTICE",
    "CITATION.cff",
    "Makefile",
    ".ci/run",
    ".pre-commit-config.yaml",
    "mkdocs.yml",
    "setup.cfg",
    "pyproject.toml",
)
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".js", ".css", ".html", ".cfg", ".toml", ".cff", ""}
NOT_PROSE = ("data", "__pycache__")  # folders with game files, word lists and model files

WORDS = {
    "rules?": "algorithm, or credit assignment for the step itself",
    "anew": "again",
    "mend|mends|mended|mending": "fix",
    "besides?": "alongside, while, or in addition to",
    "befalls?|befell": "happens to",
    "told|tells": "reports, or is given",
    "lived": "experienced",
    "whoever|who samples?": "inference engine, or the name of the component",
    "nobody|somebody|everybody|anybody": "no component, another component, all, any",
    "pass of its own|passes of their own": "a separate forward pass",
    "has no say|have no say": "has no effect",
    "training rows?|training_rows?|rows? of (?:a|the) rollouts?": "training sequence",
    "rollouts?[ _]ahead|look_?ahead": "prefetched rollouts, or staleness",
    "patience": "batching delay, or timeout",
    "lost[ _]tokens": "batching delay",
    "welcome[ _]back": "resynchronise after a restart",
    "(?:broke|break|breaks|broken|breaking)[ _]off": "interrupted request",
    "engine[ _]corrections?": "importance correction for the engine mismatch",
    "tell_plan": "expose_plan",
    "paid_for": "reward_mode",
    "turn_credit": "turn_diagnostics",
    "draw[ _]places": "shuffle order",
    "before_after": "train_and_evaluate",
}
# Case matters for these: names of the code.
NAMES = {
    r"\bRolloutsAhead\b|\bLookahead\b|\bPatience\b": "names with prefetch, staleness or delay",
    r"\bEnvironmentFacts\b|\.facts\b|\bfacts=": "EnvironmentMetadata, metadata",
    r"trl_agentic[./]rollout[./]context\b|from (?:\.+rollout)?\.context import": "rollout/prompts",
    r"\bclass Context\b": "PromptPolicy",
    r"\bclass Row\b": "TrainingSequence",
    r"\bdef (?:chance|expert)\(|\.(?:chance|expert)\(": "random_policy, expert_policy",
    r"\bdef (?:hold|note)\(|\.(?:hold|note)\(": "start_batch, record",
    r"which_rule\.md|custom_rule\.md": "choosing.md, custom_algorithm.md",
}
# (path, pattern, reason): text that the pattern matches is not checked in files below the path.
EXCEPTIONS = (
    ("trl_agentic/environments/alfworld/", r"(?i)(?<![a-z])rules?(?![a-z])", "rules of the game's logic program"),
    ("trl_agentic/environments/search/world.py", r"tells", "a word of the generated passages"),
    ("trl_agentic/viewer/data/", r"(?i)css rules?", "CSS has rules"),
    ("", r"credit_rules|which_rule\.png|--rules?\b", "names of a benchmark, its option and its files"),
    ("CHANGELOG.md", r"`(?:tell_plan|paid_for|rollout_ahead|turn_credit)`|`recipes/before_after\.py`", "old names"),
    ("docs/robustness.md", r"`tests/[\w/.-]+`", "names of test files"),
)
# Option names that are accepted for one release, in files that warn about them or document them as deprecated.
DEPRECATED = re.compile(r"\b(?:tell_plan|paid_for|rollout_ahead)\b")
DEPRECATION = re.compile(r"FutureWarning|[Dd]eprecated")


def checked_files() -> list[Path]:
    files = {path for pattern in CHECKED for path in ROOT.glob(pattern) if path.is_file() and path.suffix in SUFFIXES}
    return sorted(path for path in files if not set(NOT_PROSE) & set(path.relative_to(ROOT).parts))


def patterns() -> list[tuple[re.Pattern[str], str]]:
    words = [(re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", re.IGNORECASE), new) for word, new in WORDS.items()]
    return words + [(re.compile(name), new) for name, new in NAMES.items()]


def blank(match: re.Match[str]) -> str:
    return re.sub(r"\S", "-", match[0])


def offences(name: str, text: str) -> Iterator[str]:
    """Lines with a word of the list, as `FILE:LINE: word -> replacement`. A phrase may cross the end of a line."""
    for path, exception, _ in EXCEPTIONS:
        if name.startswith(path):
            text = re.sub(exception, blank, text)
    if DEPRECATION.search(text):
        text = DEPRECATED.sub(blank, text)
    for pattern, replacement in patterns():
        flexible = re.compile(pattern.pattern.replace(" ", r"\s+"), pattern.flags)
        for match in flexible.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {' '.join(match[0].split())!r} -> {replacement}"


def test_no_word_of_the_list_is_used():
    files = checked_files()
    assert len(files) >= 100
    found = [o for path in files for o in offences(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))]
    found += [
        f"{path.relative_to(ROOT)}: name of the file: {o}"
        for path in files
        for o in offences(str(path.relative_to(ROOT).parent / "name"), f" {path.stem} ")
    ]
    assert not found, f"{len(found)} words\n" + "\n".join(found)


def test_the_list_finds_words_and_leaves_longer_words_alone():
    text = "a rule\nbegins\nanew, who\nsamples; recommend, amended, ruler, retold, delivered, tell_plan=True"
    assert [o.partition(" -> ")[0] for o in offences("docs/page.md", text)] == [
        "docs/page.md:1: 'rule'",
        "docs/page.md:3: 'anew'",
        "docs/page.md:3: 'who samples'",
        "docs/page.md:4: 'tell_plan'",
    ]
    assert list(offences("trl_agentic/environments/alfworld/rules.py", "A rule of the game.")) == []
