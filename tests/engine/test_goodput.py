"""How many guesses pay, by what steps were seen to take."""

from __future__ import annotations

from collections.abc import Callable

from edgerun.engine.drafts import Outlook
from edgerun.engine.goodput import Goodput


def measured(seconds: Callable[[int], float], rows: tuple[int, ...] = (1, 2, 4, 8, 16)) -> Goodput:
    goodput = Goodput()
    for each in rows:
        for _ in range(3):
            goodput.saw(each, seconds(each))
    return goodput


def test_as_many_as_pay() -> None:
    cheap = measured(lambda rows: 1 + 0.05 * rows)
    assert cheap.shares(1, [Outlook(7, 0.95)], 0.0) == [7]
    assert 0 < cheap.shares(1, [Outlook(7, 0.5)], 0.0)[0] < 7
    assert cheap.shares(1, [Outlook(7, 0.02)], 0.0) == [0]
    assert cheap.shares(1, [Outlook(3, 0.95)], 0.0) == [3], "no more than there are"


def test_none_where_rows_cost_as_much_as_steps() -> None:
    """Experts that are read from a disk, or many users at once."""
    assert measured(lambda rows: float(rows)).shares(1, [Outlook(7, 0.95)], 0.0) == [0]
    full = measured(lambda rows: 1.0 if rows <= 8 else rows / 8)
    assert full.shares(8, [Outlook(7, 0.6)] * 8, 0.0) == [0] * 8
    assert full.shares(1, [Outlook(7, 0.9)], 0.0) == [7]


def test_the_likelier_ones_share_first() -> None:
    goodput = measured(lambda rows: 1.0 if rows <= 8 else rows / 4)
    shares = goodput.shares(2, [Outlook(7, 0.9), Outlook(7, 0.3)], 0.0)
    assert sum(shares) == 6 and shares[0] > shares[1]


def test_guesses_that_take_long_themselves() -> None:
    cheap = measured(lambda rows: 1 + 0.05 * rows)
    assert cheap.shares(1, [Outlook(7, 0.8)], 0.1)[0] > 0
    assert cheap.shares(1, [Outlook(7, 0.8)], 0.9) == [0]


def test_nothing_is_tried_before_anything_is_known() -> None:
    goodput = Goodput()
    assert goodput.shares(1, [Outlook(7, 0.99)], 0.0) == [0]
    goodput.saw(1, 5.0)  # with its preparation
    assert goodput.shares(1, [Outlook(7, 0.99)], 0.0) == [0]
    goodput.saw(1, 1.0)
    assert goodput.shares(1, [Outlook(7, 0.99)], 0.0) == [7]


def test_one_slow_step_decides_nothing_and_is_forgotten() -> None:
    goodput = measured(lambda rows: 1 + 0.05 * rows)
    for _ in range(4):
        goodput.saw(8, 1.4)
    goodput.saw(8, 100.0)
    assert goodput.seconds(8) == 1.4
    for _ in range(9):
        goodput.saw(8, 100.0)
    assert goodput.shares(1, [Outlook(7, 0.95)], 0.0)[0] < 7
    for _ in range(300):
        goodput.saw(1, 1.05)
    assert goodput.shares(1, [Outlook(7, 0.95)], 0.0) == [7], "it is tried again"


def test_rows_that_a_wrong_guess_has_computed_again_count() -> None:
    """A recurrent state goes back to where the step began: what was right then is computed once more."""
    dear = measured(lambda rows: 1 + 0.25 * rows)
    kept, redone = (dear.shares(1, [Outlook(7, 0.6, is_redone)], 0.0)[0] for is_redone in (False, True))
    assert kept > redone
    assert dear.shares(1, [Outlook(7, 1.0, is_redone=True)], 0.0) == [7], "nothing is wrong, nothing is computed again"
    rates = [sum(chance for chance, _ in Outlook(7, 0.6).likely()), sum(0.6**i for i in range(1, 8))]
    assert abs(rates[0] - rates[1]) < 1e-12
    expected = sum(0.6**i * 0.4 * (i + 1) for i in range(7))  # the last token and i right ones, then a wrong one
    assert abs(sum(rows for _, rows in Outlook(7, 0.6, is_redone=True).likely()) - expected) < 1e-12
