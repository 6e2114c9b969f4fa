"""Training losses as a chart and as a table."""

from hypothesis import given
from hypothesis import strategies as st

from motet.serving.web.losses import ROWS, loss_figure


def test_nobody_told_anything() -> None:
    assert loss_figure({}) is None
    assert loss_figure({"law": {}}) is None


def test_a_stretch_is_the_mean_of_what_was_told_in_it() -> None:
    figure = loss_figure({"law": {1: 4.0, 2: 3.0, 5: 2.0, 40: 1.0}, "medicine": {}, "art": {6: 6.0}})
    assert figure is not None
    assert (figure.table.columns, figure.table.corner) == (("art", "law"), "steps")
    said = [(label, [cell.text for cell in cells]) for label, cells in figure.table.rows]
    assert said == [
        ("1 to 2", ["-", "3.500"]),
        ("5 to 6", ["6.000", "2.000"]),
        ("39 to 40", ["-", "1.000"]),
    ]
    art, law = figure.chart.series
    assert [len(art.points), len(law.points)] == [1, 3]
    assert [x for x, _ in law.points] == sorted(x for x, _ in law.points)
    heights = [y for _, y in law.points]
    assert heights == sorted(heights)  # downwards on the page
    assert [tick.label for tick in figure.chart.x_ticks] == ["0", "10", "20", "30", "40"]
    assert figure.chart.y_ticks[0].label == "1"


def test_one_step_of_one_owner_is_a_figure_too() -> None:
    figure = loss_figure({"law": {0: 2.5}})
    assert figure is not None
    assert [label for label, _ in figure.table.rows] == ["1"]


STEPS = st.dictionaries(st.integers(0, 10**9 - 1), st.floats(0, 999_999, allow_nan=False), min_size=1, max_size=60)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), STEPS, min_size=1))
def test_everything_told_lies_in_the_picture(told: dict[str, dict[int, float]]) -> None:
    figure = loss_figure({name: dict(sorted(losses.items())) for name, losses in told.items()})
    assert figure is not None
    chart = figure.chart
    for series in chart.series:
        assert 1 <= len(series.points) <= ROWS
        assert all(0 <= x <= chart.width and 0 <= y <= chart.height for x, y in series.points)
    assert 2 <= len(chart.x_ticks) <= 8
    assert 2 <= len(chart.y_ticks) <= 9
    shown = sum(cell.text != "-" for _, cells in figure.table.rows for cell in cells)
    assert shown == sum(len(series.points) for series in chart.series)
    assert all(len(row) == len(told) == len(figure.table.columns) for _, row in figure.table.rows)
