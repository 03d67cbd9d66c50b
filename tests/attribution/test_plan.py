"""The plan: layers whose v* serves prompts it was not searched on, query below value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acedit.attribution.plan import DEEPEST, Plan, Reach, alike, choose_layers, middle_of
from acedit.errors import UserError

finite = st.floats(0, 20, allow_nan=False)
losses = st.tuples(st.integers(1, 20), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        *(
            st.lists(
                st.lists(finite, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
            )
            for _ in range(2)
        )
    )
)


@given(losses)
def test_layers_are_in_order_and_within_the_model(rows: tuple[list[list[float]], list[list[float]]]) -> None:
    plan = choose_layers(Reach(*rows)).checked(len(rows[0]))
    query, value = plan.query_layers, plan.value_layers
    for some in (query, value):
        assert list(some) == list(range(some[0], some[-1] + 1)) and len(some) <= DEEPEST
    assert query[-1] < value[0] or len(rows[0]) == 1
    assert all(query[-1] < layer < value[0] for layer in plan.middle_layers)
    assert Plan.from_json(plan.to_json()) == plan


@given(losses)
def test_the_best_layer_is_among_those_alike(rows: tuple[list[list[float]], list[list[float]]]) -> None:
    layers = range(len(rows[0]))
    run = alike(rows[0], layers)
    means = [sum(row) / len(row) for row in rows[0]]
    assert min(means) == min(means[layer] for layer in run)
    assert list(run) == list(range(run[0], run[-1] + 1))


def test_a_clear_difference_is_not_alike_and_a_doubtful_one_is() -> None:
    clear = [[0.1, 0.2, 0.1], [0.2, 0.3, 0.2], [5.0, 5.1, 4.9]]
    assert alike(clear, range(3)) == (0,)
    doubtful = [[0.1, 0.9, 0.1], [0.9, 0.1, 0.2], [5.0, 5.1, 4.9]]
    assert alike(doubtful, range(3)) == (0, 1)
    little = [[0.01, 0.01], [0.03, 0.03], [0.2, 0.2]]
    assert alike(little, range(3)) == (0,) and alike(little, range(3), 0.05) == (0, 1)


def test_query_layers_are_shallow_and_value_layers_deep_where_v_says_so() -> None:
    shallow = [[0.4], [0.4], [1.9], [1.5], [3.4], [7.0]]
    deep = [[2.6], [1.0], [0.1], [0.01], [0.01], [0.01]]
    plan = choose_layers(Reach(shallow, deep), value=[1.0] * 6, query=[2.0] * 6)
    assert (plan.query_layers, plan.middle_layers, plan.value_layers) == ((0,), (2,), (4, 5))
    assert plan.scores["reach"] == [0.4, 0.4, 1.9, 1.5, 3.4, 7.0]
    assert "layers 0 to 1 serve alike" in plan.reason["query"]
    assert set(choose_layers(Reach(shallow, deep)).scores) == {"reach", "value_reach"}


def test_of_layers_alike_the_outermost_are_taken() -> None:
    flat = [[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]
    plan = choose_layers(Reach(flat, flat))
    assert (plan.query_layers, plan.middle_layers, plan.value_layers) == ((0,), (3,), (5, 6))
    assert "layers 1 to 6 serve alike" in plan.reason["value"]


def test_the_middle_is_between() -> None:
    assert middle_of((0,), (5,)) == (3,)
    assert middle_of((0, 1), (2,)) == ()


@pytest.mark.parametrize(
    ("value", "query", "message"),
    [((9,), (0,), "layers 0 to 7"), ((5, 4), (0,), "ascending"), ((), (), "no layers")],
)
def test_layers_named_by_hand_are_checked(
    value: tuple[int, ...], query: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Plan(value, query).checked(8)
