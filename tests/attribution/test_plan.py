"""The plan: fewest value layers that hold the share, query layers below and within reach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acedit.attribution.plan import Plan, choose_layers
from acedit.errors import UserError

finite = st.floats(-10, 10, allow_nan=False)
table = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*(st.lists(finite, min_size=n, max_size=n) for _ in range(3)))
)


@given(table)
def test_layers_are_in_order_and_within_the_model(rows: tuple[list[float], list[float], list[float]]) -> None:
    value, query, reach = rows
    plan = choose_layers(value, query, reach).checked(len(value))
    assert plan.value_layers
    assert plan.query_layers
    assert plan.query_layers[-1] <= plan.value_layers[-1]
    assert set(plan.middle_layers).isdisjoint(plan.value_layers)
    assert Plan.from_json(plan.to_json()) == plan


@given(table, st.floats(0.1, 0.9))
def test_value_layers_are_the_fewest_that_hold_the_share(
    rows: tuple[list[float], list[float], list[float]], share: float
) -> None:
    value, query, reach = rows
    chosen = choose_layers(value, query, reach, share=share).value_layers
    positive = [max(0.0, v) for v in value]
    total = sum(positive)
    if total == 0:
        assert len(chosen) == 1
        return
    top = sorted(positive, reverse=True)
    assert sum(positive[c] for c in chosen) >= share * total - 1e-9
    assert sum(top[: len(chosen) - 1]) < share * total


def test_query_layers_are_within_reach() -> None:
    plan = choose_layers(
        [0.0, 0.0, 0.0, 0.0, 1.0, 5.0],
        [9.0, 1.0, 1.0, 9.0, 9.0, 0.0],
        [0.8, 0.7, 0.8, 1.5, 1.8, 10.0],
        slack=0.05,
    )
    assert plan.value_layers == (5,)
    assert set(plan.query_layers) <= {0, 1, 2}
    assert 0 in plan.query_layers


@pytest.mark.parametrize(
    ("value", "query", "message"),
    [((9,), (0,), "layers 0 to 7"), ((5, 4), (0,), "ascending"), ((), (), "no layers")],
)
def test_layers_named_by_hand_are_checked(
    value: tuple[int, ...], query: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Plan(value, query).checked(8)
