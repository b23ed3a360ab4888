"""Recurrent states of sequences, against sums over plain lists of tokens: whatever is cut, forked, recalled or taken
away, a sequence goes on from states of exactly the tokens that it says it has."""

from __future__ import annotations

import ctypes
import gc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgerun.errors import DoesNotFitError, UnsupportedError, UsageError
from edgerun.kv import KvLayer, KvLedger, KvSequence, PagePool, StateLayer, States, layer_groups, state_layouts
from edgerun.kv.states import EVERY, sequence_blocks
from tests.interrupts import interrupts
from tests.kv.holding import restore

LAYERS = [None, KvLayer(1, 4, 4), None]
GROUPS = layer_groups(LAYERS)
LAYOUTS = state_layouts([StateLayer(1, 40), None, StateLayer(2, 3, 4, 5, 6)])
BLOCK = max(layout.end for layout in LAYOUTS.values())
PAGE = GROUPS[0].page_bytes
CAPACITY = 3000
MODULUS = 1_000_003


def new_pool(limit_bytes: int | None = None) -> PagePool:
    pool = PagePool(GROUPS, KvLedger(limit_bytes), States(LAYOUTS, BLOCK))
    pool.prefixes.limit_bytes = 6 * (PAGE + BLOCK)
    return pool


def after(state: int, token: int, layer: int) -> int:
    """What a layer keeps once another token has come: all tokens before matter, and their order."""
    return (state * 31 + token + 1 + layer) % MODULUS


def put(sequence: KvSequence, tokens: list[int], start: int) -> None:
    """What kernels do with the rows of `tokens`, the first of which stands at `start`."""
    for layer, layout in LAYOUTS.items():
        for (source, target), token in zip(sequence.states.rows(start, len(tokens)).tolist(), tokens, strict=True):
            before = ctypes.c_int64.from_address(source + layout.conv_at).value
            ctypes.c_int64.from_address(target + layout.conv_at).value = after(before, token, layer)


def write(sequence: KvSequence, tokens: list[int], wave: int = 10_000, piece: int = 100) -> None:
    """A step: waves of so many rows, that pass layers in pieces."""
    sequence.reserve(len(tokens))
    for low in range(0, len(tokens), wave):
        some = tokens[low : low + wave]
        for first in range(0, len(some), piece):
            put(sequence, some[first : first + piece], sequence.length + first)
        sequence.advance(len(some))


def check(sequence: KvSequence, tokens: list[int]) -> None:
    sequence.check_integrity()
    assert sequence.length == len(tokens)
    if not tokens:
        return
    for layer, layout in LAYOUTS.items():
        want = 0
        for token in tokens:
            want = after(want, token, layer)
        content = sequence.states.content(len(tokens))[layout.conv_at :][:8]
        assert content.view("int64")[0] == want, f"layer {layer} after {len(tokens)} tokens"


ACTIONS = st.tuples(
    st.sampled_from(
        ["new", "write", "write", "write", "few", "cut", "fork", "drop", "release", "park", "unpark", "fail", "mark"]
        + ["remember", "remember", "recall", "recall", "save"]
    ),
    st.integers(0, 4),
    st.one_of(st.integers(1, 400), st.sampled_from([1, 2, 8, 255, 256, 257, 512])),
    st.integers(0, 1000),
)


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=20), limit=st.one_of(st.none(), st.integers(8, 40)))
@example(
    actions=[("new", 0, 1, 0), ("mark", 0, 290, 0), ("write", 0, 300, 1), ("remember", 0, 1, 0), ("new", 0, 1, 0)]
    + [("recall", 1, 300, 0), ("write", 1, 9, 2), ("cut", 0, 5, 0), ("write", 0, 20, 2)],
    limit=None,
)
@example(actions=[("new", 0, 1, 0), ("write", 0, 300, 1), ("few", 0, 7, 3), ("cut", 0, 4, 0)], limit=None)
def test_against_lists(actions, limit):
    pool = new_pool(None if limit is None else limit * BLOCK + 12 * PAGE)
    gc.freeze()
    try:
        act(pool, actions)
        gc.collect()
    finally:
        gc.unfreeze()
    pool.prefixes.release()
    assert pool.ledger.held_bytes == 0


def act(pool, actions):
    held: list[tuple[KvSequence, list[int]]] = []
    for action, which, n, value in actions:
        if action == "new":
            held.append((KvSequence(pool, CAPACITY), []))
            continue
        if not held:
            continue
        sequence, tokens = held[which % len(held)]
        new = [(value + i) % 500 for i in range(min(n if action != "few" else n % 8 + 1, CAPACITY - len(tokens)))]
        try:
            if action in ("write", "few"):
                sequence.spare = False
                write(sequence, new, wave=1 + value * 2)
                tokens += new
            elif action == "fail":  # in its second wave
                sequence.spare = False
                sequence.reserve(len(new))
                half = -(-len(new) // 2)
                for low, high in ((0, half), (half, half + 5)):
                    if new[low:high]:
                        put(sequence, new[low:high], len(tokens) + low)
                    if high == half:
                        sequence.advance(half)
                n_held = sequence.held_from(len(tokens))
                assert n_held == len(tokens), "where the step began is held"
                sequence.truncate(n_held)
            elif action == "fork":
                held.append((sequence.copy(len(tokens)), list(tokens)))
            elif action == "save":
                arrays = {name: sequence.saved(name).copy() for name in sequence.saved_forms()}
                restore(sequence, len(tokens), sequence.saved_forms(), arrays.__getitem__)
        except DoesNotFitError:
            assert pool.ledger.limit_bytes is not None
            if action == "save":
                tokens.clear()
        if action == "cut":
            wanted = max(0, len(tokens) - n)
            got = sequence.held_from(wanted)
            assert got <= wanted
            sequence.truncate(got)
            del tokens[got:]
        elif action == "mark":
            sequence.mark(len(tokens) + n)
        elif action == "remember":
            sequence.remember(tokens)
        elif action == "recall":
            prompt = [*held[value % len(held)][1][: 2 * n], *[501] * 3, *tokens]
            got = sequence.recall(prompt)
            assert got >= len(tokens)
            if got > len(tokens):
                tokens[:] = prompt[:got]
        elif action == "release":
            sequence.release()
            tokens.clear()
        elif action in ("park", "unpark"):
            sequence.spare = action == "park"
        elif action == "drop":
            held.pop(which % len(held))
            del sequence
        for each, expected in held:
            if each.spare and not each.length:
                expected.clear()
            check(each, expected)
        pool.check_integrity()


def test_a_long_text_takes_what_was_planned():
    """States do not grow with the text; checkpoints give way to pages."""
    pages = 4
    planned = sequence_blocks(BLOCK, pages * EVERY) * BLOCK
    pool = PagePool(GROUPS, KvLedger(pages * PAGE + planned), States(LAYOUTS, BLOCK))
    sequence = KvSequence(pool, pages * EVERY)
    tokens = [i % 500 for i in range(pages * EVERY)]
    sequence.mark(700)
    for low in range(0, len(tokens), 50):
        write(sequence, tokens[low : low + 50])
        assert pool.ledger.held_bytes <= pages * PAGE + planned
    check(sequence, tokens)
    assert sequence.n_bytes == pages * PAGE + planned
    assert [sequence.held_from(n) for n in (1023, 999, 767)] == [1000, 768, 700]


def test_the_nearest_checkpoint_is_taken():
    """There are more of them near the end, and the end of a prompt but for one token is always among them."""
    sequence, tokens = KvSequence(new_pool(), 30_000), [i % 500 for i in range(20_000)]
    sequence.mark(19_990)
    for low in range(0, 20_000, 500):
        write(sequence, tokens[low : low + 500])
    write(sequence, [1])
    assert sequence.held_from(19_999) == 19_990
    lost = [n - sequence.held_from(n) for n in (19_900, 19_000, 15_000, 5_000)]
    assert lost[0] < 2 * EVERY
    assert all(n <= 6_000 for n in lost), lost
    assert sequence.states.n_bytes <= 26 * BLOCK


def test_guesses_leave_states_of_each_row():
    sequence, tokens = KvSequence(new_pool(), 100), [3, 1, 4]
    write(sequence, tokens)
    write(sequence, [1, 5, 9, 2])
    for n in (6, 5, 4, 3):
        assert sequence.held_from(n) == n
        sequence.truncate(n)
        check(sequence, [3, 1, 4, 1, 5, 9, 2][:n])
    write(sequence, [7])
    check(sequence, [3, 1, 4, 7])


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_that_is_interrupted(shared):
    """At whatever line of what keeps states: the tokens before are held, or the sequence says what is."""
    tokens = [i % 500 for i in range(300)]
    for moment in range(1, 2000):
        pool = new_pool()
        sequence = KvSequence(pool, CAPACITY)
        write(sequence, tokens)
        twin = sequence.copy(300) if shared else None
        left = iter(range(moment))
        try:
            with interrupts(lambda file: "/edgerun/kv/" in file, lambda left=left: next(left, None) is None):
                write(sequence, [7] * 300, wave=200)
            return  # there are no more lines
        except KeyboardInterrupt:
            pass
        n = sequence.held_from(min(300, sequence.length))
        assert n == 300
        sequence.truncate(n)
        check(sequence, tokens)
        write(sequence, [8] * 20)
        check(sequence, [*tokens, *[8] * 20])
        if twin is not None:
            check(twin, tokens)
        pool.check_integrity()
    raise AssertionError("it never ends")


def test_what_was_half_written_is_not_gone_on_from():
    """Between two waves of a step nothing is held of the end of the first: whoever goes on there is told."""
    sequence = KvSequence(new_pool(), 3000)
    write(sequence, [1] * 100)
    sequence.reserve(100)
    put(sequence, [2] * 60, 100)
    sequence.advance(60)
    assert not sequence.is_whole
    with pytest.raises(UsageError, match="are not held"):
        sequence.reserve(1)
    with pytest.raises(UsageError, match="cannot cut"):
        sequence.truncate(150)
    assert sequence.held_from(160) == 100
    sequence.truncate(100)
    check(sequence, [1] * 100)


def test_a_file_of_another_model_is_refused():
    sequence = KvSequence(new_pool(), 100)
    write(sequence, [1, 2, 3])
    forms = sequence.saved_forms()
    arrays = {name: sequence.saved(name).copy() for name in forms}
    wrong = [{k: v for k, v in forms.items() if k != "states"}, {**forms, "states": ("U8", (BLOCK - 64,))}]
    for each in wrong:
        with pytest.raises(UnsupportedError, match="kept in another way"):
            restore(KvSequence(new_pool(), 100), 3, each, arrays.__getitem__)
    other = KvSequence(new_pool(), 100)
    restore(other, 3, forms, arrays.__getitem__)
    check(other, [1, 2, 3])


@pytest.mark.parametrize("columns", [40, 1 << 19, 5 << 20], ids=["small", "middle", "large"])
@pytest.mark.parametrize("turns", [[4000], [100] * 10, [700, 30, 900]], ids=["long", "chat", "both"])
def test_no_more_is_held_than_was_planned(columns, turns):
    """Nor less, of checkpoints in a prompt and marks at the ends of turns together; nor does it grow with the text once
    there are as many checkpoints as a sequence may have."""
    layouts = state_layouts([StateLayer(1, columns), None, None])
    block = layouts[0].end
    pool = PagePool(GROUPS, KvLedger(None), States(layouts, max(each.end for each in layouts.values())))
    sequence = KvSequence(pool, sum(turns) + 60 * len(turns))
    most = 0
    for prompt in turns:
        end = sequence.length + prompt
        sequence.mark(end - 1)
        for step in [*[256] * (prompt // 256), prompt % 256, *[1] * 60]:
            sequence.reserve(step)
            most = max(most, sequence.states.n_bytes)
            sequence.advance(step)
    assert most == block * sequence_blocks(block, sequence.length)
    assert sequence.held_from(end - 1) == end - 1, "the end of the last prompt but for a token"
    assert sequence_blocks(block, 1 << 20) == sequence_blocks(block, 1 << 15)
