"""Beginnings that sequences have in common are held once, and recalled as far as one can go on from them."""

from __future__ import annotations

import pytest

from edgerun.kv import KvSequence
from edgerun.kv.groups import SLACK
from tests.kv.holding import CAPACITY, GROUPS, WINDOW, check, new_pool, write

ONE = sum(group.page_bytes for group in GROUPS)
PROMPT = [i * 7 % 500 for i in range(1000)]


def remembered(pool, tokens, step=100) -> KvSequence:
    sequence = KvSequence(pool, CAPACITY)
    for low in range(0, len(tokens), step):
        write(sequence, tokens[low : low + step])
        sequence.remember(tokens[: low + step])
    return sequence


def test_a_second_sequence_takes_over_what_is_there():
    pool = new_pool()
    first = remembered(pool, PROMPT[:700])
    second = KvSequence(pool, CAPACITY)
    assert second.recall([*PROMPT[:650], 1, 2, 3]) == 650
    before = pool.n_bytes
    check(second, PROMPT[:650])
    write(second, [1, 2, 3])
    assert pool.n_bytes <= before + 4 * ONE
    write(first, PROMPT[700:720])
    check(first, PROMPT[:720])
    check(second, [*PROMPT[:650], 1, 2, 3])
    pool.check_integrity()


def test_ten_sequences_take_little_more_than_one():
    pool = new_pool()
    pool.prefixes.limit_bytes = 100 * ONE
    remembered(pool, PROMPT)
    one = pool.n_bytes
    others = []
    for i in range(10):
        others.append(KvSequence(pool, CAPACITY))
        assert others[-1].recall([*PROMPT, i]) == len(PROMPT)
        write(others[-1], [i] * 10)
    tails = 10 * sum(group.page_bytes * (group.most_pages(1010, 10) if group.window else 1) for group in GROUPS)
    assert pool.n_bytes <= 1.2 * one + tails
    for i, each in enumerate(others):
        check(each, [*PROMPT, *[i] * 10])


@pytest.mark.parametrize("n", [0, 1, 31])
def test_little_is_not_worth_a_page(n):
    pool = new_pool()
    remembered(pool, PROMPT[:300])
    second = KvSequence(pool, CAPACITY)
    assert second.recall([*PROMPT[:n], 501, 502]) == 0


def test_what_is_longer_stays():
    pool = new_pool()
    remembered(pool, PROMPT[:300])
    second = KvSequence(pool, CAPACITY)
    write(second, PROMPT[:400])
    assert second.recall(PROMPT) == 400
    assert KvSequence(pool, 250).recall(PROMPT) == 0, "more than its capacity"


def test_a_page_that_was_filled_further_replaces_itself():
    pool = new_pool()
    remembered(pool, PROMPT[:250], step=50)
    assert len(list(pool.prefixes.held_pages())) == len(GROUPS)
    assert KvSequence(pool, CAPACITY).recall(PROMPT) == 250


def test_a_window_that_moved_on():
    """Only what the next position sees must be there: a beginning that ends before what is kept is of no use."""
    pool = new_pool()
    pool.prefixes.limit_bytes = 100 * ONE
    sequence = KvSequence(pool, CAPACITY)
    text = [*PROMPT, *PROMPT[:700]]
    for low in range(0, 1700, 100):
        write(sequence, text[low : low + 100])
    sequence.remember(text)
    for n, want in ((1700, 1700), (1650, 1650), (900, 0)):
        other = KvSequence(pool, CAPACITY)
        assert other.recall([*text[:n], 501]) == want
        check(other, text[:want])
    assert 1700 - WINDOW - SLACK > 900
    kept = [page is not None for page in sequence._held[1].pages]
    assert not kept[0], "or the last case says nothing"


def test_what_was_not_used_for_longest_goes_first():
    pool = new_pool()
    pool.prefixes.limit_bytes = 2 * ONE
    texts = [[i, *PROMPT[1:300]] for i in range(3)]
    for text in texts[:2]:
        remembered(pool, text, 300)
    assert KvSequence(pool, CAPACITY).recall(texts[0]) == 300
    remembered(pool, texts[2], 300)
    assert [KvSequence(pool, CAPACITY).recall(text) for text in texts] == [300, 0, 300]
    assert pool.prefixes.n_bytes <= 4 * ONE
    pool.check_integrity()


def test_it_gives_way_to_sequences():
    pool = new_pool(6 * ONE)
    remembered(pool, PROMPT[:700], 700)
    assert pool.prefixes.n_bytes == 3 * ONE
    other = KvSequence(pool, CAPACITY)
    write(other, PROMPT[1:1001], 1000)
    check(other, PROMPT[1:1001])
    pool.check_integrity()
    assert pool.prefixes.n_bytes <= 2 * ONE
