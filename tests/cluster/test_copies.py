"""Copies of keys and values: what a loss leaves of a text is what computing it again would give, to the bit, and is not
computed again; what there is no copy of, or no room for, is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.cluster import copying
from edgerun.cluster.conductor import Conductor
from edgerun.cluster.copies import Copies
from edgerun.cluster.copying import heads_of
from edgerun.cluster.group import GroupDecoder, Whole
from edgerun.cluster.local import local_group
from edgerun.cluster.mirror import MOST_BLOCKS_BYTES, Follower, SaidBlock
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import Ability, divide, with_states
from edgerun.cluster.state_parts import all_states, state_part
from edgerun.cluster.worker import OpenedShard, RankOptions
from edgerun.errors import DoesNotFitError, FormatError, PagesLostError, UnsupportedError
from edgerun.events import ignore
from edgerun.kernels import load_kernels
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kernels.kv_formats import F16, KV_FORMATS, Q4_0, Q8_0
from edgerun.kernels.page_arrays import read_positions, write_positions
from edgerun.kernels.states import StateLayout
from edgerun.kv import Group, KvLedger, KvOptions, KvSequence, Page, PagePool, States
from edgerun.kv.blocks import BLOCKS, block_bytes, pick_heads, put_heads, read_block, write_block
from edgerun.kv.groups import KvLayer, layer_groups
from edgerun.kv.states import block_bytes as states_bytes
from edgerun.models.holdings import kv_groups, states_of
from edgerun.models.places import Pass, Run
from edgerun.models.share import spec_of_share
from edgerun.weights import ResidentStore
from tests.cluster.groups import linked_group, on_all
from tests.cluster.in_threads import CONTEXT
from tests.cluster.thread_assembly import ThreadAssembly
from tests.models.instances import VOCAB, open_instance

PARTS = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where instances and their shards are kept, each written once."""
    return tmp_path_factory.mktemp("copies")


@pytest.mark.parametrize("format", [F16, Q8_0, Q4_0], ids=lambda format: format.name)
def test_a_block_keeps_what_heads_were_written_as(format):
    """Two ranks' heads, one of which both have, put together and picked apart for a third, which had others."""
    kv, rng, sizes = KvOptions(format, format), np.random.default_rng(0), [(4, 32, 64), (3, 64, 32)]
    numbers = [
        [rng.standard_normal((KEYS_PER_PAGE, heads, dim)).astype(np.float32) for dim in dims] for heads, *dims in sizes
    ]

    def page_of(some: list[list[int]]) -> tuple[KvSequence, Page, Group]:
        layers = [KvLayer(len(heads), *dims) for heads, (_, *dims) in zip(some, sizes, strict=True)]
        parts = [(k[:, heads], v[:, heads]) for heads, (k, v) in zip(some, numbers, strict=True)]
        pool = PagePool(layer_groups(layers, kv))
        sequence = KvSequence(pool, KEYS_PER_PAGE)
        sequence.reserve(KEYS_PER_PAGE)
        with np.errstate(invalid="ignore"):  # blocks that are not written yet
            for layer, (k, v) in enumerate(parts):
                write_positions(sequence.pages(layer), 0, k, v)
        return sequence, sequence.held()[0][0], pool.groups[0]

    _, whole, group = page_of([[0, 1, 2, 3], [0, 1, 2]])
    third, theirs, their_group = page_of([[3, 0], [0]])
    wanted, _, _ = page_of([[1, 3], [2]])
    for number in range(BLOCKS - 1):
        block = np.zeros(block_bytes(group), np.uint8)
        for some in ([[0, 1], [0]], [[1, 2, 3], [1, 2]]):
            _, page, page_group = page_of(some)
            put_heads(read_block(page, page_group, number), block, group, some)
        np.testing.assert_array_equal(block, read_block(whole, group, number))
        write_block(theirs, their_group, number, pick_heads(block, group, [[1, 3], [2]]))
    for layer in range(2):
        both = (read_positions(each.pages(layer), 0, KEYS_PER_PAGE) for each in (third, wanted))
        for got, want in zip(*both, strict=True):
            same = (got == want).all(axis=(0, 2))
            assert same[: 3 * KEYS].all() and not same[3 * KEYS :].any()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["llama", "gemma3", "smallthinker", "deepseek2", "deepseek2-before-2025-Q8_0"]),
    PARTS,
    PARTS,
    st.booleans(),
)
def test_whoever_is_lost_every_head_of_a_new_share_was_copied(directory, name, old, new, in_units):
    """Of any shares and any others: the old ones' parts put together are all heads, of which each new one gets its."""
    gguf, spec = open_instance(name, directory)
    with gguf, contextlib.suppress(UnsupportedError):  # more ranks than can have something of it
        before, after = (divide(spec, spec.tensors, parts, in_units=in_units) for parts in (old, new))
        groups = kv_groups(spec)
        for index, group in enumerate(groups):
            block = np.random.default_rng(0).integers(0, 256, block_bytes(group)).astype(np.uint8)
            copy = np.zeros_like(block)
            for share in before:
                heads = heads_of(spec, share, groups)[index]
                put_heads(pick_heads(block, group, heads), copy, group, heads)
            np.testing.assert_array_equal(copy, block)
            for share in after:
                part = pick_heads(copy, group, heads_of(spec, share, groups)[index])
                assert part.size == block_bytes(kv_groups(spec_of_share(spec, share))[index])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["qwen35", "qwen3next", "lfm2", "granitehybrid"]), PARTS, PARTS, st.booleans())
def test_whoever_is_lost_every_state_of_a_new_share_was_copied(directory, name, old, new, in_units):
    """The same of states: each column of a convolution and each head's matrix, wherever a share has them."""
    gguf, spec = open_instance(name, directory)
    with gguf, contextlib.suppress(UnsupportedError):
        before, after = (
            divide(spec, spec.tensors, with_states(spec, parts), in_units=in_units) for parts in (old, new)
        )
        whole = all_states(spec)
        block = whole.pick(np.random.default_rng(0).integers(0, 256, whole.n_bytes).astype(np.uint8))
        copy = np.zeros_like(block)
        for share in before:
            part = state_part(spec, share)
            part.put(part.pick(block), copy)
        np.testing.assert_array_equal(copy, block)
        for share in after:
            part, shard = state_part(spec, share), spec_of_share(spec, share)
            assert part.n_bytes == states_bytes(states_of(shard).layouts)
            mine = part.pick(copy)
            for layer, layout in part.mine.items():  # the order is that of the shard's tensors
                cols, heads = part.cols[layer], part.heads[layer]
                assert (layout.conv_cols, layout.heads) == (len(cols), len(heads))
                for at, head in enumerate(heads):
                    size = 4 * layout.key_dim * layout.value_dim
                    theirs = whole.mine[layer].matrices_at + head * size
                    low = layout.matrices_at + at * size
                    np.testing.assert_array_equal(mine[low : low + size], block[theirs : theirs + size])


def test_there_is_no_copy_of_states_whose_block_was_written_again():
    pool = PagePool([], KvLedger(None), States({0: StateLayout(3, 8, 2, 4, 4, 0)}, 1 << 10))
    sequence, copies = KvSequence(pool, CONTEXT), Copies((), None, 64)

    def step(tokens: int) -> Run:
        for position in (64, 128):
            sequence.states.mark(position)
        sequence.reserve(tokens)
        run = Run(sequence, sequence.length, tokens)
        copies.writes(Pass((run,), [], few=False))
        sequence.advance(tokens)
        return run

    run, block = step(100), np.ones(64, np.uint8)
    assert copies.lacking_states(run) == 64
    copies.add_states(sequence, 64, block)
    fork = sequence.copy(100)
    assert [(each.length, each.states) for each in copies.kept()] == [(64, block)] and copies.n_bytes == 64
    held = sequence.states.checkpoints(100)[64]
    sequence.truncate(0)
    step(128)
    assert held not in sequence.states.all() and not copies.kept(), "others may begin with it still"
    copies.writes(Pass((Run(fork, 100, 0),), [], few=False))
    assert [(each.sequence, each.states) for each in copies.kept()] == [(fork, block)] and copies.n_bytes == 64
    fork.release()
    del fork, held
    sequence.truncate(0)
    assert copies.lacking_states(step(128)) == 128 and not copies.kept()
    copies.add_states(sequence, 128, block)
    sequence.truncate(0)
    again = set(copies._of_blocks)
    step(128)
    assert again <= set(sequence.states.all()) and not copies.kept() and copies.n_bytes == 0


# -- groups that lose devices -----------------------------------------------------------------------------------------

N = 300  # tokens before the first loss
IDS = [int(each) for each in np.random.default_rng(1).integers(1, VOCAB, 400)]


@contextlib.contextmanager
def grouped(
    name: str, others: int, folder, directory, *, kv: str = "f16", told: dict[object, list[int]] | None = None
) -> Iterator[tuple[GroupDecoder, ThreadAssembly]]:
    """A group of threads whose sums are made of units, so that whoever takes part computes the same bits. told: of each
    shard, what its store was told that others hold."""
    options = KvOptions(KV_FORMATS[kv], KV_FORMATS[kv])
    told = {} if told is None else told

    @contextlib.contextmanager
    def opened(gguf, spec, _options, _events) -> Iterator[OpenedShard]:
        with contextlib.closing(load_kernels("auto", threads=1, kv=(options.keys, options.values))) as kernels:
            store = ResidentStore(gguf, spec, kernels)
            told[spec] = heard = []
            store.others_hold = heard.append
            yield OpenedShard(kernels, store, options, None)

    gguf, spec = open_instance(name, directory)
    with gguf:
        assembly = ThreadAssembly([1.0] * others, folder, opened)
        own, ranks = Ability(1.0, 1 << 40), RankOptions(CONTEXT, kv=kv)
        whole = Whole(gguf, spec, own, ShardStore(folder), opened, ranks, in_units=True)
        with contextlib.closing(GroupDecoder(whole, assembly, ignore)) as decoder:
            yield decoder, assembly
        assert not assembly.errors


def logits_of(decoder: GroupDecoder, ids: Sequence[int], cache: KvSequence) -> np.ndarray:
    """Of the rest of `ids`, 100 at a time."""
    found = []
    while cache.length < len(ids):
        found.append(decoder.forward(ids[cache.length :][:100], cache, logits="all"))
    return np.concatenate(found)


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Rows of all passes from now on; copying takes what time it needs."""
    made: list[int] = []
    run = Conductor.run

    def counted(self, task, x, compute):
        made.append(task.rows)
        return run(self, task, x, compute)

    monkeypatch.setattr(Conductor, "run", counted)
    for each in ("_OF_TOKENS", "_OF_PROMPTS"):
        monkeypatch.setattr(copying, each, 1e6)
    return made


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        *(("llama", "f16"), ("gemma3", "f16"), ("gemma2-silent", "q8_0"), ("gemma2-silent", "q4_0")),
        *(("deepseek2", "f16"), ("deepseek2-before-2025-Q8_0", "f16"), ("mistral4-all-Q8_0", "f16")),
        *(("qwen35", "f16"), ("qwen35-many", "f16"), ("lfm2", "f16"), ("granitehybrid", "f16"), ("qwen3next", "f16")),
    ],
)
def test_what_a_loss_leaves_is_what_would_be_computed_again(name, kv, directory, tmp_path, rows):
    with grouped(name, 0, tmp_path, directory, kv=kv) as (alone, _):
        wanted = logits_of(alone, IDS, alone.new_cache(CONTEXT))
    with grouped(name, 3, tmp_path, directory, kv=kv) as (decoder, assembly):
        cache = decoder.new_cache(CONTEXT)
        np.testing.assert_array_equal(logits_of(decoder, IDS[:N], cache), wanted[:N])
        assembly.lose(1, after_calls=5)
        with pytest.raises(PagesLostError):
            decoder.forward(IDS[N:], cache)
        kept = N // KEYS * KEYS
        assert decoder.size == 3 and cache.length == kept
        rows.clear()
        np.testing.assert_array_equal(logits_of(decoder, IDS, cache), wanted[kept:])
        assert sum(rows) == len(IDS) - kept


def test_what_the_head_has_itself_nobody_is_asked_for(directory, tmp_path, rows, monkeypatch):
    """The one vector of a position that all heads read: every rank keeps it, so that copies cost no link anything."""

    def refuse(*_: object) -> None:
        raise AssertionError("it was asked for blocks")

    monkeypatch.setattr(Follower, "read", refuse)
    with grouped("deepseek2", 2, tmp_path, directory) as (decoder, _):
        logits_of(decoder, IDS[:N], decoder.new_cache(CONTEXT))
        assert decoder._copies.n_bytes == N // KEYS * block_bytes(decoder._copies.groups[0]) > 0


def test_losses_one_after_the_other_and_while_the_first_is_handled(directory, tmp_path, rows):
    """Three others go: a second one while it is given what was kept, the last one later; forks and a sequence in the
    same pages go on, too."""
    with grouped("gemma3", 0, tmp_path, directory) as (alone, _):
        wanted = logits_of(alone, IDS, alone.new_cache(CONTEXT))
    with grouped("gemma3", 3, tmp_path, directory) as (decoder, assembly):
        cache = decoder.new_cache(CONTEXT)
        logits_of(decoder, IDS[:N], cache)
        fork = cache.copy(N - 10)
        np.testing.assert_array_equal(logits_of(decoder, IDS[:310], fork), wanted[N - 10 : 310])
        assembly.events[2, "begun"] = lambda: assembly.lose(0, after_calls=3)
        assembly.lose(2, after_calls=5)
        with pytest.raises(PagesLostError):
            decoder.forward(IDS[N:], cache)
        assert decoder.size == 2 and assembly.groups == 3 and not assembly.events
        assert (cache.length, fork.length) == (256, 256)
        np.testing.assert_array_equal(logits_of(decoder, IDS, fork), wanted[256:])
        cache.truncate(100)
        np.testing.assert_array_equal(logits_of(decoder, IDS[:N], cache), wanted[100:N])
        assembly.lose(0)
        with pytest.raises(PagesLostError):
            decoder.forward(IDS[N:], cache)
        assert decoder.size == 1 and (cache.length, fork.length) == (256, 384)
        np.testing.assert_array_equal(logits_of(decoder, IDS, cache), wanted[256:])
        cache.check_integrity()


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "granitehybrid"])
def test_whoever_began_with_states_of_another_has_their_copies(name, directory, tmp_path, rows):
    """A fork, and a sequence that begins with what is remembered of one that does something else by now; two others go,
    the second while the first is handled."""
    with grouped(name, 0, tmp_path, directory) as (alone, _):
        wanted = logits_of(alone, IDS, alone.new_cache(CONTEXT))
    with grouped(name, 3, tmp_path, directory) as (decoder, assembly):
        first, second, spare = (decoder.new_cache(CONTEXT) for _ in range(3))
        logits_of(decoder, IDS[:N], first)
        fork = first.copy(N)
        first.remember(IDS[:N])
        assert second.recall(IDS) == 256
        for each in (fork, second):
            low = each.length
            np.testing.assert_array_equal(logits_of(decoder, IDS[:310], each), wanted[low:310])
        first.truncate(0)
        logits_of(decoder, IDS[::-1][:200], first)  # its blocks are written again, but for those that others have
        assembly.events[2, "begun"] = lambda: assembly.lose(0, after_calls=3)
        assembly.lose(2, after_calls=5)
        with pytest.raises(PagesLostError):
            decoder.forward([1], spare)
        assert decoder.size == 2 and (first.length, fork.length, second.length) == (192, 256, 256)
        for each in (fork, second):
            np.testing.assert_array_equal(logits_of(decoder, IDS, each), wanted[256:])
            each.check_integrity()


@pytest.mark.parametrize(("n_blocks", "kept"), [(4, 0), (6, 128), (8, 256)])
def test_without_room_for_copies_a_text_is_computed_again(n_blocks, kept, directory, tmp_path, rows):
    """Two pages of the head's are as large as four blocks of all heads: with the second of them copies give way that
    there was room for."""
    with grouped("llama", 0, tmp_path, directory) as (alone, _):
        wanted = logits_of(alone, IDS, alone.new_cache(CONTEXT))
    with grouped("llama", 3, tmp_path, directory) as (decoder, assembly):
        (group,) = decoder._copies.groups
        assert 2 * decoder.pages.groups[0].page_bytes == 4 * block_bytes(group)
        decoder._copies.limit_bytes = n_blocks * block_bytes(group)
        cache = decoder.new_cache(CONTEXT)
        logits_of(decoder, IDS[:200], cache)
        assert decoder._copies.n_bytes == min(3, n_blocks - 2) * block_bytes(group)
        logits_of(decoder, IDS[:N], cache)
        assembly.lose(1, after_calls=5)
        with pytest.raises(PagesLostError):
            decoder.forward(IDS[N:], cache)
        assert cache.length == kept
        np.testing.assert_array_equal(logits_of(decoder, IDS, cache), wanted[kept:])


@pytest.mark.parametrize("lacking", ["a device that takes part", "the head"])
def test_who_has_no_room_for_what_was_kept_lets_all_compute_it_again(lacking, directory, tmp_path, rows, monkeypatch):
    with grouped("llama", 0, tmp_path, directory) as (alone, _):
        wanted = logits_of(alone, IDS, alone.new_cache(CONTEXT))
    with grouped("llama", 2, tmp_path, directory) as (decoder, assembly):
        cache = decoder.new_cache(CONTEXT)
        logits_of(decoder, IDS[:N], cache)

        def refuse(*_: object) -> None:
            raise DoesNotFitError("no memory")

        assembly.lose(0, after_calls=5)
        with monkeypatch.context() as patched:
            patched.setattr(*((Follower, "write") if "device" in lacking else (KvSequence, "make_ready")), refuse)
            with pytest.raises(PagesLostError):
                decoder.forward(IDS[N:], cache)
        assert decoder.size == 2 and cache.length == 0 and cache.n_bytes == 0
        np.testing.assert_array_equal(logits_of(decoder, IDS, cache), wanted)


def test_on_every_rank_weights_give_way_to_keys_and_values(directory, tmp_path):
    told: dict[object, list[int]] = {}
    with grouped("llama", 1, tmp_path, directory, told=told) as (decoder, _):
        logits_of(decoder, IDS[:N], decoder.new_cache(CONTEXT))
    pages = [sum(group.page_bytes for group in kv_groups(spec)) for spec in told]
    assert [heard[-1] for heard in told.values()] == [2 * n_bytes for n_bytes in pages] and len(pages) == 2


# -- what no head says ------------------------------------------------------------------------------------------------


def test_a_head_reads_nothing_that_lay_in_a_page_before(monkeypatch) -> None:
    pool = PagePool(layer_groups([KvLayer(1, 32, 32)]), KvLedger(None))
    take = pool.take

    def used(holder, groups):
        pages = take(holder, groups)
        for page in pages:
            page.content[:] = 7
        return pages

    monkeypatch.setattr(pool, "take", used)
    follower, blocks = Follower(pool, KEYS_PER_PAGE), [SaidBlock(0, 1, number) for number in range(BLOCKS)]
    follower.write(blocks[:1], np.ones(block_bytes(pool.groups[0]), np.uint8))
    assert set(follower.read(blocks[1:])) == {0}


def test_blocks_that_no_head_names_are_refused() -> None:
    pool = PagePool(layer_groups([KvLayer(1, 32, 32), KvLayer(4, 32, 32, window=64)]), KvLedger(None))
    follower = Follower(pool, 2 * KEYS_PER_PAGE)
    first, second = map(block_bytes, pool.groups)
    some = [SaidBlock(0, 1, 3), SaidBlock(1, 2, 0)]
    data = np.random.default_rng(0).integers(0, 256, follower.check_blocks(some)).astype(np.uint8)
    assert data.size == first + second
    follower.write(some, data)
    np.testing.assert_array_equal(follower.read(some[::-1]), np.concatenate([data[first:], data[:first]]))
    wrong = [
        [SaidBlock(2, 1, 0)],
        [SaidBlock(-1, 1, 0)],
        [SaidBlock(0, 1, BLOCKS)],
        [SaidBlock(0, 1, -1)],
        [SaidBlock(0, 1, 0)] * (MOST_BLOCKS_BYTES // first + 1),
    ]
    for blocks in wrong:
        with pytest.raises(FormatError, match="blocks"):
            follower.check_blocks(blocks)
        with pytest.raises(FormatError, match="blocks"):
            follower.read(blocks)
    for unknown in ([SaidBlock(0, 3, 0)], [SaidBlock(1, 1, 0)]):
        with pytest.raises(FormatError, match="does not hold"):
            follower.read(unknown)
    with pytest.raises(FormatError, match="in a table of"):
        follower.write([SaidBlock(1, 1, 0)], data[first:])


@pytest.mark.parametrize("more", [-4, 4])
def test_a_rank_that_gives_more_or_less_than_its_part_is_lost(more, directory, tmp_path, rows, monkeypatch):
    read = Follower.read
    with grouped("llama", 1, tmp_path, directory) as (decoder, _):
        monkeypatch.setattr(Follower, "read", lambda self, blocks: np.resize(read(self, blocks), 49152 + more))
        with pytest.raises(PagesLostError, match="than its keys and values"):
            logits_of(decoder, IDS, decoder.new_cache(CONTEXT))


@pytest.mark.parametrize("group", [local_group(3), linked_group(3)], ids=["local", "linked"])
def test_each_rank_gets_its_part_bit_for_bit(group) -> None:
    bits = [np.arange(n, dtype=np.uint32) * 0x01010101 + 0x7F800001 for n in (2, 5, 70_000)]  # some are no numbers
    parts = [each.view(np.float32) for each in bits]

    def get(rank):
        out = np.zeros_like(parts[rank.rank])
        rank.scatter(parts if rank.rank == 0 else (), out)
        return out

    for rank, got in enumerate(on_all(group, get)):
        np.testing.assert_array_equal(got.view(np.uint32), bits[rank] if rank else 0)
    for each in group:
        each.close()
