"""Hypothesis settings for mutation tests: the same examples in every run."""

from __future__ import annotations

from hypothesis import Phase, settings


settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
