"""Bounds that are declared beside an option's default."""

import dataclasses
import math

import pytest

from cellbench.config.bounds import bounds, check_bounds
from cellbench.utils.errors import UserError


@dataclasses.dataclass
class Options:
    whole: int | str = dataclasses.field(default=3, metadata=bounds(1, 5_000))
    share: float | None = dataclasses.field(default=None, metadata=bounds(above=0, below=1))
    sides: tuple[int, int] = dataclasses.field(default=(8, 8), metadata=bounds(8))
    free: float = -math.inf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": 0}, "data.x.whole: 0 is less than 1"),
        ({"whole": 5001}, "data.x.whole: 5001 is more than 5,000"),
        ({"share": 0.0}, "data.x.share: 0.0 is not greater than 0"),
        ({"share": 1.0}, "data.x.share: 1.0 is not less than 1"),
        ({"share": math.nan}, "data.x.share: nan is not greater than 0"),
        ({"sides": (9, 7)}, "data.x.sides: 7 is less than 8"),
    ],
)
def test_a_value_out_of_bounds_is_named(given, message):
    with pytest.raises(UserError) as error:
        check_bounds(Options(**given), "data.x")
    assert str(error.value) == message


@pytest.mark.parametrize("given", [{}, {"whole": "none"}, {"whole": 5000, "share": 0.5}])
def test_what_is_inside_or_no_number_passes(given):
    check_bounds(Options(**given), "data.x")
