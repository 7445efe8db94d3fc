"""Errors as the user reads them."""

import pytest

from cellbench.utils.errors import reason_of


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError(0), "KeyError"),  # such as a library raises for damaged data
        (ValueError(), "ValueError"),
        (ValueError("bad\n  header"), "bad header"),
        (OSError("x" * 200), "x" * 80),
    ],
)
def test_a_librarys_error_is_one_short_line_that_says_something(error, text):
    assert reason_of(error) == text
