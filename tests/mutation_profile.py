"""Plugin of pytest for mutation tests: hypothesis draws the same examples for every mutant, without shrinking."""

from __future__ import annotations

from hypothesis import Phase, settings


settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
