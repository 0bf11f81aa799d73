from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskflux.tasks.fields import compact

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
@example(1e400)
@example([{"a": [-(10**40), 1e16, 1e-7, -0.0, 0.1]}, '\x7f\u2028\ud800\U0001f600"\\/\t'])
def test_a_document_is_written_as_the_standard_encoder_writes_it(document: Any) -> None:
    """What a repeated key is compared by, and what is stored, depend on it."""
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    try:
        expected = plain.encode(document)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:20]):
            compact(document)
    else:
        assert compact(document) == expected
