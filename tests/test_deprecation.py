"""Deprecated names of options."""

from __future__ import annotations

import pytest

from trl_agentic.deprecation import renamed_option


def test_the_old_name_is_accepted_with_a_warning():
    assert renamed_option("old", None, "new", 5) == 5
    with pytest.warns(FutureWarning, match="`old` is deprecated and will be removed in the next release: use `new`"):
        assert renamed_option("old", 3, "new", None) == 3
    with pytest.warns(FutureWarning, match="`old` is deprecated"):
        assert renamed_option("old", False, "new", True, default=True) is False


def test_both_names_with_different_values_are_an_error():
    with pytest.raises(ValueError, match="Set `new` or its deprecated name `old`, not both"):
        renamed_option("old", 3, "new", 4)
    with pytest.warns(FutureWarning):
        assert renamed_option("old", 4, "new", 4) == 4
