"""What a step is made of: bounds, turns, pages that run out, errors. No threads, no time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgerun.engine.step import StepOptions
from edgerun.errors import DoesNotFitError, UsageError
from engine.fakes import FakeDecoder, LayeredDecoder
from engine.requests import House, Talk, expected, read


def prompt(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def talking(house: House, n: int, most: int = 1000) -> list[Talk]:
    """So many whose prompts are read already, so that each waits for its next token."""
    talks = [house.ask(prompt(5, seed), most) for seed in range(n)]
    house.step()
    assert all(talk.n_left == 1 for talk in talks)
    return talks


def test_tokens_go_first_and_all_in_one_step() -> None:
    house = House()
    talking(house, 4)
    house.ask(prompt(2000), 1)
    for _ in range(5):
        house.step()
        *first, last = house.decoder.batches[-1]
        assert first == [1, 1, 1, 1]
        assert last > 1


@pytest.mark.parametrize("row_s", [0.0005, 0.002, 0.02])
def test_a_prompt_rides_along_within_the_bound(row_s: float) -> None:
    house = House(row_s=row_s)
    talks = talking(house, 4)
    long = house.ask(prompt(2000), 1)
    took = []
    while not long.is_over:
        before = house.now_s
        house.step()
        took.append(house.now_s - before)
        for talk in talks:
            assert len(read(talk)) >= 1, "everybody gets a token in every step"
    assert max(took) <= 0.25
    assert read(long) == expected(prompt(2000), 1)
    if row_s < 0.02:  # the time that there is is used
        assert len(took) < 1.5 * 2000 / min(256, (0.85 * 0.25 - 0.03) / row_s) + 8


def test_a_machine_that_slows_down_breaks_the_bound_once() -> None:
    house = House()
    talks = talking(house, 2)
    house.ask(prompt(7000), 1)
    over = 0
    for n in range(60):
        if n == 20:
            house.row_s *= 4
        before = house.now_s
        house.step()
        over += house.now_s - before > 0.25
        for talk in talks:
            read(talk)
    assert over == 1


def test_where_a_token_takes_longer_than_the_bound_a_prompt_may_double_it() -> None:
    house = House(step_s=0.6)
    talks = talking(house, 2)
    for _ in range(3):
        house.step()
    long = house.ask(prompt(1500), 1)
    n = 0
    while not long.is_over:
        before = house.now_s
        house.step()
        assert house.now_s - before <= 1.3
        for talk in talks:
            read(talk)
        n += 1
    assert n < 20


def test_alone_a_prompt_takes_whole_steps() -> None:
    house = House()
    house.ask(prompt(600), 1)
    house.run()
    assert house.decoder.batches == [[256], [256], [88]]


def test_prompts_take_turns() -> None:
    house = House()
    long = [house.ask(prompt(2000, seed), 1) for seed in range(3)]
    for _ in range(9):
        house.step()
    lengths = [len(talk.context) for talk in long]
    assert lengths == [3 * 256] * 3
    short = house.ask(prompt(40), 1)
    for _ in range(4):
        house.step()
    assert short.is_over


def test_what_a_short_prompt_leaves_is_for_the_next() -> None:
    house = House()
    house.ask(prompt(50, 1), 1)
    house.ask(prompt(60, 2), 1)
    house.ask(prompt(900, 3), 1)
    house.step()
    assert house.decoder.batches == [[50, 60, 146]]


def test_fixed_steps_begin_at_their_multiples_and_answers_go_one_by_one() -> None:
    """Also when an answer is computed again, because its pages were taken away."""
    house = House(options=StepOptions(64, fixed_steps=True))
    talk = house.ask(prompt(150), 30)
    other = house.ask(prompt(10, 2), 3)
    while len(talk.ids) < 160:
        house.step()
        read(talk)
    assert [max(batch) for batch in house.decoder.batches[:4]] == [64, 10, 64, 22]
    house.decoder.batches.clear()
    talk.has_begun = False
    talk.context.drop()
    house.run()
    assert house.decoder.batches[:3] == [[64], [64], [22]]
    assert set(map(tuple, house.decoder.batches[3:])) == {(1,)}
    assert talk.ids[150:] == expected(prompt(150), 30)
    assert other.ids[10:] == expected(prompt(10, 2), 3)


def test_more_than_may_take_part_wait() -> None:
    house = House(options=StepOptions(256, most_at_once=3))
    talks = [house.ask(prompt(5, seed), 4) for seed in range(7)]
    house.step()
    assert [talk.has_begun for talk in talks] == [True] * 3 + [False] * 4
    house.run()
    assert [talk.ids[5:] for talk in talks] == [expected(prompt(5, seed), 4) for seed in range(7)]


@pytest.mark.parametrize("when", range(6))
def test_cancelled_at_any_moment_a_request_frees_its_pages_within_a_step(when: int) -> None:
    house = House(FakeDecoder(pages=8))
    other = house.ask(prompt(300, 2), 20)
    cancel = threading.Event()
    talk = house.ask(prompt(700), 50, cancel=cancel)
    for _ in range(when):
        house.step()
    cancel.set()
    house.step()
    assert talk not in house.requests
    assert house.decoder.pages.n_bytes == (other.context.sequence.n_bytes if other in house.requests else 0)
    house.run()
    assert other.ids[300:] == expected(prompt(300, 2), 20)


# -- layers between tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_s", [0.0005, 0.002, 0.004])
def test_layers_of_a_prompt_go_between_tokens_within_the_bound(row_s: float) -> None:
    house = House(LayeredDecoder(), row_s=row_s)
    talks = talking(house, 4)
    house.step()
    for talk in talks:
        read(talk)
    long = house.ask(prompt(2000), 1)
    began = last = house.now_s
    gaps = []
    while not long.is_over:
        house.step()
        got = [len(read(talk)) for talk in talks]
        assert got in ([0] * 4, [1] * 4), "everybody gets a token at once"
        if got[0]:
            gaps.append(house.now_s - last)
            last = house.now_s
    assert max(gaps) <= 0.25
    assert read(long) == expected(prompt(2000), 1)
    rows = [batch for batch in house.decoder.batches if batch[-1] > 1]
    assert max(map(len, rows[1:])) == 1, "no rows of it ride along"
    alone = sum(0.02 + row_s * each[-1] for each in rows[1:])
    assert house.now_s - began < alone / (1 - (0.02 + 4 * row_s) / 0.15), "the time between tokens is used"


def test_a_short_prompt_does_not_wait_until_a_long_one_is_through() -> None:
    house = House(LayeredDecoder())
    talks = talking(house, 2)
    long = house.ask(prompt(5000), 1)
    for _ in range(12):
        house.step()
    short = house.ask(prompt(30, 2), 1)
    asked = house.now_s
    while not short.is_over:
        house.step()
        for talk in talks:
            read(talk)
    assert house.now_s - asked < 0.6
    assert not long.is_over
    assert read(short) == expected(prompt(30, 2), 1)
    house.requests.remove(talks[0])
    house.requests.remove(talks[1])
    house.run()
    assert long.ids[5000:] == expected(prompt(5000), 1)


@pytest.mark.parametrize("what", ["cancelled", "pages", "cut"])
def test_a_wave_whose_request_goes_is_forgotten(what: str) -> None:
    house = House(LayeredDecoder(pages=8), row_s=0.008)
    other = house.ask(prompt(300, 2), 300)
    for _ in range(3):
        house.step()
    cancel = threading.Event()
    talk = house.ask(prompt(900), 5, cancel=cancel)
    while not house.steps._waves.parts or not len(talk.context):
        house.step()
        read(other)
    if what == "cancelled":
        cancel.set()
    elif what == "pages":
        house.steps._waves.lost(talk)
        talk.has_begun = False
        talk.context.drop()
    else:
        talk.context.truncate(0)  # its ticket is void
    house.step()
    assert what == "pages" or talk not in house.requests
    if what == "cut":
        with pytest.raises(UsageError, match="overtaken"):
            read(talk)
    house.run()
    assert other.ids[300:] == expected(prompt(300, 2), 300)
    if what == "pages":
        assert talk.ids[900:] == expected(prompt(900), 5)
    assert house.decoder.pages.n_bytes == 0


@pytest.mark.parametrize("when", ["between", "meanwhile"])
def test_a_wave_does_not_outlive_the_reader(when: str) -> None:
    """Or its sequence would hold pages until somebody asks for another step."""
    house = House(LayeredDecoder(), row_s=0.008)
    talking(house, 2)
    long = house.ask(prompt(600), 1)
    while not house.steps._waves.parts:
        house.step()
    if when == "between":
        long.results.end()
        house.steps.left(long)
    else:
        house.decoder.on_wave = lambda rows: long.results.end()  # type: ignore[method-assign]
        while not long.is_over:
            house.steps.make(lambda: house.requests)
    assert not house.steps._waves.parts and house.steps._waves._wave is None


def test_without_company_a_wave_ends_and_an_error_in_it_is_told() -> None:
    house = House(LayeredDecoder(), row_s=0.008)
    talks = talking(house, 2)
    long = house.ask(prompt(600), 1)
    while not house.steps._waves.parts:
        house.step()
    house.requests[:] = [long]
    house.step()
    assert not house.steps._waves.parts
    house.requests[:] = [*talks, long]
    while not house.steps._waves.parts:
        house.step()

    def fail(rows: int) -> None:
        raise OSError("the disk")

    house.decoder.on_wave = fail  # type: ignore[method-assign]
    while long in house.requests:
        house.step()
    with pytest.raises(OSError, match="the disk"):
        read(long)
    house.run()
    assert talks[0].ids[5:] == expected(prompt(5, 0), 1000)


# -- readers -----------------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_read_delays_nobody() -> None:
    house = House()
    slow, quick = house.ask(prompt(5, 1), 100), house.ask(prompt(5, 2), 100)
    got: list[int] = []
    for _ in range(103):
        house.step()
        got += read(quick)
    assert got == expected(prompt(5, 2), 100)
    assert len(slow.ids) < 5 + 30, "it pauses"
    said = read(slow)
    while slow in house.requests:
        house.step()
        said += read(slow)
    assert said + read(slow) == expected(prompt(5, 1), 100)


# -- pages -------------------------------------------------------------------------------------------------------


def test_when_pages_run_out_the_youngest_gives_way_and_is_computed_again() -> None:
    house = House(FakeDecoder(pages=5))
    talks = [house.ask(prompt(500, seed), 400) for seed in range(2)]  # four pages each in the end
    house.run()
    assert [talk.ids[500:] for talk in talks] == [expected(prompt(500, seed), 400) for seed in range(2)]
    assert talks[0].reused == [0]
    assert talks[1].reused == [0, 0]


def test_whoever_lost_its_pages_may_be_cancelled() -> None:
    house = House(FakeDecoder(pages=5))
    cancel = threading.Event()
    first, second = house.ask(prompt(500, 1), 400), house.ask(prompt(500, 2), 400, cancel=cancel)
    while second.has_begun or not second.reused:
        house.step()
        read(first), read(second)
    cancel.set()
    house.step()
    assert second not in house.requests and house.decoder.pages.n_bytes == first.context.sequence.n_bytes
    house.run()
    assert first.ids[500:] == expected(prompt(500, 1), 400)


def test_many_answers_in_few_pages_all_come_whole() -> None:
    house = House(FakeDecoder(pages=7))
    lengths = [(300, 300), (10, 600), (700, 30), (200, 200), (500, 500)]
    talks = [house.ask(prompt(n, n), most) for n, most in lengths]
    house.run()
    assert [talk.ids[n:] for talk, (n, _) in zip(talks, lengths, strict=True)] == [
        expected(prompt(n, n), most) for n, most in lengths
    ]
    assert house.decoder.pages.n_bytes == 0
    assert sum(map(len, (talk.reused for talk in talks))) < 12, "they are not computed over and over"


def test_whoever_is_not_read_gives_way_first() -> None:
    house = House(FakeDecoder(pages=5))
    idle = house.ask(prompt(500, 1), 400)
    while idle.can_go_on:
        house.step()
    quick = house.ask(prompt(900, 2), 50)
    got: list[int] = []
    while quick in house.requests:
        house.step()
        got += read(quick)
    assert got == expected(prompt(900, 2), 50)
    assert not idle.has_begun
    house.run()
    assert idle.ids[500:] == expected(prompt(500, 1), 400)


def test_a_new_one_waits_for_room_and_whoever_can_never_have_it_is_refused() -> None:
    house = House(FakeDecoder(pages=4))
    first, second = house.ask(prompt(600, 1), 5), house.ask(prompt(600, 2), 5)
    giant = house.ask(prompt(2000, 3), 5)
    house.step()
    assert (first.has_begun, second.has_begun) == (True, False)
    house.run()
    with pytest.raises(DoesNotFitError, match="keys and values"):
        read(giant)
    assert second.ids[600:] == expected(prompt(600, 2), 5)


# -- errors ------------------------------------------------------------------------------------------------------


def test_an_error_of_a_step_is_told_to_all_in_it_and_the_next_one_goes_on() -> None:
    house = House()
    talks = talking(house, 3)

    def fail() -> None:
        raise OSError("the disk")

    house.decoder.on_layer = fail
    house.step()
    house.decoder.on_layer = lambda: None
    for talk in talks:
        with pytest.raises(OSError, match="the disk"):
            read(talk)
    last = house.ask(prompt(30), 5)
    house.run()
    assert last.ids[30:] == expected(prompt(30), 5)


def test_an_error_of_one_is_told_to_that_one() -> None:
    house = House()
    good, bad, signal = talking(house, 3, most=10)
    bad.take = lambda rows, seconds: [][0]  # type: ignore[method-assign,misc]

    class Signal:
        def is_set(self) -> bool:
            raise ValueError("the caller's signal")

    signal._cancel = Signal()
    house.step()
    with pytest.raises(IndexError):
        read(bad)
    with pytest.raises(ValueError, match="the caller's signal"):
        read(signal)
    house.run()
    assert good.ids[5:] == expected(prompt(5, 0), 10)


def test_who_takes_part_is_asked_when_the_step_begins() -> None:
    """Those who got pages while a thread waited for its step have some to give: without them the step would refuse."""
    house, asked = House(), threading.Event()

    def everybody() -> list[Talk]:
        asked.set()
        return house.requests

    with house.lock.held():
        thread = threading.Thread(target=house.steps.make, args=(everybody,))
        thread.start()
        assert not asked.wait(0.05)
    thread.join()
    assert asked.is_set()


@pytest.mark.parametrize("end", ["leave", "park", "close"])
def test_pages_can_be_had_until_they_are_spare(end: str) -> None:
    """A thread that is done waits for the step before it gives its pages back: that step, which needs them, may."""
    house = House()
    (talk,) = talking(house, 1)
    talk.context.is_transient = True
    with house.lock.held():
        thread = threading.Thread(target=getattr(talk.context, end))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive() and talk.holds_pages
    thread.join()
    talk.context.is_transient = False  # a session's, which goes on with them
    assert not talk.holds_pages or end == "close"
