"""Windows: every token once, enough context, and no dependence on what follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm.model.windows import check_window, plan


@given(length=st.integers(0, 500), window=st.integers(1, 60), data=st.data())
def test_every_position_once_with_its_context(length, window, data):
    context = data.draw(st.integers(0, window - 1))
    windows = plan(length, window, context)
    scored = [t for w in windows for t in range(w.score_from, w.stop)]
    assert scored == list(range(length))
    for w in windows:
        assert 0 <= w.start <= w.score_from < w.stop
        assert w.stop - w.start <= window
        # A position t sees the inputs start .. t, which stand for the tokens before it.
        assert w.start == 0 or w.score_from - w.start >= context


@given(length=st.integers(1, 300), longer=st.integers(0, 100), window=st.integers(1, 40), data=st.data())
def test_what_a_token_sees_does_not_depend_on_what_follows(length, longer, window, data):
    context = data.draw(st.integers(0, window - 1))

    def starts(n):
        return [w.start for w in plan(n, window, context) for _ in range(w.score_from, w.stop)]

    assert starts(length + longer)[:length] == starts(length)


@pytest.mark.parametrize(("window", "context"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_windows(window, context):
    with pytest.raises(ValueError, match="context < window"):
        plan(10, window, context)


def test_window_beyond_the_model():
    with pytest.raises(ValueError, match="at most 8"):
        check_window(9, 4, 8)
