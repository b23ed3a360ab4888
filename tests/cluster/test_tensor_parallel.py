"""A model on several ranks says what it says on one: every family, equal and uneven shares, prompts and single tokens,
several sequences at once, and after errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from edgerun.cluster import peers
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.shares import all_edges, divide
from edgerun.cluster.short import MOST_BYTES
from edgerun.cluster.units import rank_units
from edgerun.cluster.wire_format import EXACT, wire_format
from edgerun.cluster.worker import OpenedShard
from edgerun.errors import Cancelled, ReadError, UnsupportedError
from edgerun.events import Span
from edgerun.formats.gguf import GgmlType
from edgerun.models import Batch, Decoder, Stretch
from edgerun.models.reductions import reductions
from edgerun.weights import ResidentStore
from tests.cluster.groups import linked_group
from tests.cluster.in_threads import CONTEXT, greedy, one_thread, resident, together
from tests.models.instances import INSTANCES, open_instance, tokens_of

NEW = 12
RECURRENT = ("qwen35", "lfm2", "granitehybrid")
SURELY = {
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "olmoe",
    "phi3",
    "gemma2",
    "gemma3",
    "smallthinker",
    "starcoder2",
    "bitnet",
    "lfm2",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "granitehybrid",
    "gpt-oss",
    "hunyuan-moe",
    "lfm2moe",
    "nemotron_h",
    "afmoe",
    "deepseek2",
    "mistral4",
}
DIVIDED = [([1, 1], "llama"), ([1, 1, 1, 1], "llama-Q4_0"), ([2, 1, 1, 1, 1], "llama"), ([1, 0, 1], "gemma3")]
DIVIDED += [([1, 1, 1, 1], "olmoe"), ([1, 1], "qwen3moe-small-Q4_0"), ([1, 1, 1], "bitnet"), ([1, 0, 1], "qwen2moe")]
DIVIDED += [([1, 0, 1], "deepseek2"), ([1, 1, 1, 1], "deepseek2-before-2025-Q8_0"), ([0, 1, 1], "mistral4")]
DIVIDED += [([1, 1, 1, 1, 1], "mixtral"), ([1, 1, 1, 1], "relu-Q8_0"), ([1, 1, 1, 1], "smallthinker")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where instances and their shards are kept, each written once."""
    return tmp_path_factory.mktemp("shards")


@pytest.mark.parametrize(
    ("parts", "name"), [*(([4, 2, 1], name) for name in INSTANCES), *DIVIDED], ids=lambda value: str(value)
)
def test_the_same_tokens_on_any_number_of_ranks(parts, name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        if spec.architecture not in SURELY:
            try:
                divide(spec, spec.tensors, parts)
            except UnsupportedError as error:
                pytest.skip(f"refused: {error}")
        alone = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=CONTEXT)
        ids = tokens_of(INSTANCES[name])
        wanted = alone.forward(ids, alone.new_cache(100), logits="all")
        with together(gguf, spec, parts, directory, resident(one_thread)) as group:
            got = group.decoder.forward(ids, group.decoder.new_cache(100), logits="all")
            off = np.abs(got - wanted).max(axis=1) / np.abs(wanted).max()  # of each position
            # A sum's last bit may round an activation otherwise, where activations are rounded.
            most = 1e-4 if INSTANCES[name].type == GgmlType.F32 else 2e-2
            most = 3e-4 if name == "gemma4" else most  # which alone was seen beyond: it grows from 3e-7 on, by position
            assert np.median(off) < most and off.max() < 5e-2
            check_tokens(group.decoder, alone, ids, 5e-2)
        assert not group.errors


def check_tokens(several: Decoder, alone: Decoder, ids: list[int], most: float) -> None:
    """The tokens of one device, and what several say of each: the same, but where two are nearer than they differ,
    and logits off by at most so much of the largest."""
    caches = several.new_cache(len(ids) + NEW), alone.new_cache(len(ids) + NEW)
    for _ in range(NEW):
        got, wanted = several.forward(ids, caches[0])[0].copy(), alone.forward(ids, caches[1])[0]
        off, token = np.abs(got - wanted).max(), int(wanted.argmax())
        assert off < most * np.abs(wanted).max()
        assert int(got.argmax()) == token or wanted[token] - np.partition(wanted, -2)[-2] <= 2 * off
        ids = [token]


GROUPS: list[tuple[list[int], str]] = [
    ([1], "star"),
    ([1, 1], "star"),
    ([1, 1, 1], "mesh"),
    ([1, 1, 1, 1], "star"),
    ([1, 1, 1, 1], "mesh"),
    ([4, 2, 1], "mesh"),
    ([4, 2, 1], "star"),
]


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "llama-Q4_0", "llama-Q4_K", "gemma3", "bitnet", "olmoe", "qwen2moe", "qwen3moe-small-Q4_0"),
        *("lfm2", "qwen35", "qwen35-many", "qwen35moe", "qwen3next", "qwen3next-old", "granitehybrid", "afmoe"),
        *("deepseek2", "deepseek2-groups", "deepseek2-Q8_0", "deepseek2-before-2025-Q8_0", "mistral4"),
        *("mistral4-all-Q8_0", "gptoss", "gptoss-MXFP4", "gemma4", "gemma4-moe", "qwen35moe-fused", "hunyuanmoe"),
        *("lfm2moe", "granite-swa-moe-Q8_0", "nemotron_h", "nemotron_h_moe", "nemotron_h_moe-Q8_0"),
    ],
)
def test_the_same_bits_on_any_number_of_ranks(name, directory):
    """Where sums are made of units: logits of a prompt to the bit, and the tokens after it."""
    gguf, spec = open_instance(name, directory)
    ids = tokens_of(INSTANCES[name])
    with gguf:
        wanted = None
        for parts, way in GROUPS:
            group = linked_group(len(parts), way, wait_s=60)
            with together(gguf, spec, parts, directory, resident(one_thread), group, in_units=True) as made:
                logits = made.decoder.forward(ids, made.decoder.new_cache(100), logits="all").copy()
                got = logits, greedy(made.decoder, ids, NEW)
            assert not made.errors
            wanted = wanted or got
            assert np.array_equal(got[0], wanted[0]), f"{parts} by the {way}"
            assert got[1] == wanted[1]


@pytest.mark.parametrize(
    ("name", "in_units"),
    [
        *((each, False) for each in ("llama", "olmoe", "bitnet")),
        *((each, True) for each in ("deepseek2", "deepseek2-before-2025-Q8_0", *RECURRENT)),
    ],
)
def test_bits_do_not_depend_on_how_a_sequence_is_cut_or_on_company(name, in_units, directory):
    ids = np.random.default_rng(3).integers(0, 96, 300).tolist()
    gguf, spec = open_instance(name, directory)
    with gguf, together(gguf, spec, [2, 1], directory, resident(one_thread), in_units=in_units) as group:
        decoder = group.decoder
        whole = decoder.forward(ids, decoder.new_cache(400), logits="all")
        cache, other, rows = decoder.new_cache(400), decoder.new_cache(400), []
        low = 0
        for high in (1, 3, 60, 61, 290, 300):
            batch = Batch((Stretch(cache, ids[low:high], "all"), Stretch(other, [high % 96], "none")))
            rows.append(decoder.step(batch)[0])
            low = high
        assert np.array_equal(np.concatenate(rows), whole)
        assert greedy(decoder, ids[:40], 6) == greedy(decoder, ids[:40], 6)
    assert not group.errors


@pytest.mark.parametrize(("name", "parts"), [("gemma3", [1, 1]), *((each, [1, 1, 1]) for each in RECURRENT)])
def test_what_the_heads_sequences_hold_the_others_hold(name, parts, directory, kernels):
    """Sequences are cut, copied, begun like others and forgotten at random; the others see the same positions (of
    Gemma 3 in groups of pages with and without a window), and the same states."""
    rng = np.random.default_rng(5)
    gguf, spec = open_instance(name, directory)
    with gguf, together(gguf, spec, parts, directory, resident(one_thread)) as group:
        alone = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=CONTEXT)
        both = (alone, group.decoder)
        pairs = [tuple(decoder.new_cache(CONTEXT) for decoder in both) for _ in range(3)]
        known: list[list[int]] = [[] for _ in pairs]
        for turn in range(60):
            at = int(rng.integers(len(pairs)))
            pair, ids = pairs[at], known[at]
            what = ["go on", "go on", "go on", "cut", "copy", "recall", "forget"][int(rng.integers(7))]
            if what == "cut" and ids:
                # Of states their checkpoints are held, which lie near the end
                wish = int(rng.integers(len(ids) // 2 if name in RECURRENT else 0, len(ids) + 1))
                n = pair[0].held_from(wish)
                assert pair[1].held_from(wish) == n
                for each in pair:
                    each.truncate(n)
                del ids[n:]
            elif what == "copy" and len(ids) > 1:
                to = int(rng.integers(len(pairs)))
                n = pair[0].held_from(len(ids) - int(name not in RECURRENT))
                pairs[to], known[to] = tuple(each.copy(n) for each in pair), ids[:n]
            elif what == "recall":
                for each in pair:
                    each.remember(ids)
                    each.release()
                ids[:] = ids[: {each.recall(ids) for each in pair}.pop()]
            elif what == "forget" and turn % 3 == 0:
                for each in pair:
                    each.release()
                ids.clear()
            more = rng.integers(0, 96, int(rng.choice([1, 2, 7, 70, 300]))).tolist()
            if len(ids) + len(more) > CONTEXT:
                continue
            pair, ids = pairs[at], known[at]
            want, got = (decoder.forward(more, each) for decoder, each in zip(both, pair, strict=True))
            ids += more
            assert np.abs(got - want).max() < 2e-3 * np.abs(want).max(), f"turn {turn}: {what}"
    assert not group.errors


@contextlib.contextmanager
def _failing(gguf, spec, options, events) -> Iterator[OpenedShard]:
    """As `resident`, but a worker's layer cannot be read now and then."""
    with contextlib.closing(one_thread()) as kernels:
        store = ResidentStore(gguf, spec, kernels)
        plain, calls = store.layer, 0

        def layer(number, cancelled=lambda: False):
            nonlocal calls
            calls += 1
            if not spec.shard.text and calls % 10 == 0:
                raise ReadError("the disk is gone")
            return plain(number, cancelled)

        store.layer = layer
        store.fixed = False  # so that every pass asks for its layers
        yield OpenedShard(kernels, store, None, None)


def test_an_error_on_one_rank_ends_the_step_on_all_and_no_more(directory, kernels):
    gguf, spec = open_instance("llama", directory)
    ids = tokens_of(INSTANCES["llama"])
    with gguf:
        alone = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=CONTEXT)
        tokens = greedy(alone, ids, 8)
        with together(gguf, spec, [1, 1, 1], directory, _failing) as group:
            decoder, errors = group.decoder, 0
            cache, out, left = decoder.new_cache(100), [], list(ids)
            while len(out) < 8:
                before = cache.length
                try:
                    logits = decoder.forward(left, cache)
                except ReadError as error:
                    assert "device 1" in str(error) and "the disk is gone" in str(error)
                    assert cache.length == before
                    errors += 1
                    continue
                out.append(int(logits[0].argmax()))
                left = out[-1:]
            assert out == tokens and errors >= 2
        assert not group.errors


@pytest.mark.parametrize(("name", "rows"), [("olmoe", 1), ("olmoe", 40), ("llama", 200)])  # the last in halves
def test_cancelling_leaves_the_group_ready(name, rows, directory):
    gguf, spec = open_instance(name, directory)
    ids = [number % 90 for number in range(rows)]
    with gguf, together(gguf, spec, [1, 1], directory, resident(one_thread)) as group:
        decoder = group.decoder
        cache = decoder.new_cache(300)
        wanted = decoder.forward(ids, decoder.new_cache(300))
        decoder.forward([1], cache)
        for after in range(1, 4):
            asked = 0

            def cancelled(after=after):
                nonlocal asked
                asked += 1
                return asked > after

            with pytest.raises(Cancelled):
                decoder.forward(ids, cache, cancelled=cancelled)
            assert cache.length == 1
        assert np.array_equal(decoder.forward(ids, decoder.new_cache(300)), wanted)
    assert not group.errors


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [("llama", [64, 64]), ("olmoe", [2, 64, 64]), ("bitnet", [1, 64, 1, 64]), ("gemma4-moe", [64, 64, 64])],
)
def test_what_is_summed_up_is_what_the_formula_says(name, per_layer, directory):
    gguf, spec = open_instance(name, directory)
    with gguf, together(gguf, spec, [1, 1, 1], directory, resident(one_thread)) as group:
        assert [each.numbers for each in reductions(spec, 1, 3)] == per_layer * spec.n_layers
        cache, lockstep = group.decoder.new_cache(700), group.conductor.lockstep
        spans: list[Span] = []
        group.decoder.watch(spans.append)
        for rows in (1, 5, 300, 1):
            before = lockstep.reductions, lockstep.reduced_bytes
            group.decoder.forward([7] * rows, cache)
            counted = lockstep.reductions - before[0], lockstep.reduced_bytes - before[1]
            sizes = [each.numbers for low in range(0, rows, 256) for each in reductions(spec, min(256, rows - low), 3)]
            assert counted == (len(sizes), 4 * sum(size + 1 for size in sizes))  # each says whether its rank goes on
            told = [span for span in spans if span.lane == "cluster"]
            assert sum(span.n_bytes for span in told if span.name.startswith("sum")) == counted[1]
            assert len(told) == counted[0] + 1, "the logits are gathered"
            spans.clear()


@pytest.mark.parametrize(
    ("parts", "way", "wire", "in_units"),
    [
        ([1, 1, 1, 1], "star", "f32", True),
        ([1, 1, 1, 1], "mesh", "f32", True),
        ([4, 2, 1], "mesh", "f32", True),
        ([1, 1, 1], "star", "q8", False),
        ([1, 1, 1], "mesh", "auto", False),
    ],
    ids=str,
)
def test_bytes_on_the_wire_are_those_of_the_formula(parts, way, wire, in_units, directory, monkeypatch):
    """Of each rank and each sum, headers included, before encryption; of a token, and of a prompt's long sums."""
    sent: dict[int, list[int]] = {rank: [] for rank in range(len(parts))}

    def counted(plain):
        def act(self, *arguments):
            before = self.sent_bytes
            found = plain(self, *arguments)
            sent[self.rank].append(self.sent_bytes - before)
            return found

        return act

    monkeypatch.setattr(peers, "FEW_NUMBERS", 1 << 12)  # a half of a prompt of a model this small has 8,192
    for name in ("all_reduce", "reduce_long", "fold"):
        monkeypatch.setattr(LinkedCollective, name, counted(getattr(LinkedCollective, name)))
    gguf, spec = open_instance("llama", directory)
    with gguf:
        share = divide(spec, spec.tensors, parts, in_units=in_units)[0]
        foldings = {each[-1]: rank_units(each, 0).folding for each in all_edges(share, parts)}
        group = linked_group(len(parts), way, "f32" if wire == "auto" else wire, wait_s=60)
        for each in group if wire == "auto" else ():
            each.peers.wires = EXACT, wire_format("q8")
        with together(gguf, spec, parts, directory, resident(one_thread), group, in_units=in_units) as made:
            for rows in (1, 300):
                for each in sent.values():
                    each.clear()
                made.decoder.forward([7] * rows, made.decoder.new_cache(400))
                passes = [min(256, rows - low) for low in range(0, rows, 256)]
                sums = [each for count in passes for each in reductions(made.decoder.spec, count, len(parts))]
                for rank, found in sent.items():
                    wanted = []
                    for numbers, units in sums:
                        nodes = foldings[units].counts[rank] if units else 1
                        wanted.append(_sent_bytes(rank, len(parts), numbers + 1, nodes, way, wire))
                    assert found == wanted, f"{rows} rows, rank {rank}"


def _sent_bytes(rank: int, ranks: int, count: int, nodes: int, way: str, wire: str) -> int:
    """What a rank sends for a sum of so many numbers, of which it has so many partial sums."""
    is_long = peers.is_long(count - 1)
    format = EXACT if wire == "auto" and not is_long else wire_format("q8" if wire == "auto" else wire)

    is_rounded = is_long and not format.is_exact
    count -= is_rounded  # whether a rank ends is a byte behind the numbers, and not a number more

    def frame(numbers: int) -> int:
        return 12 + format.n_bytes(numbers) + is_rounded

    if way == "star":
        return frame(nodes * count) if rank else (ranks - 1) * frame(count)
    if not is_long and nodes * count * 4 <= MOST_BYTES:
        return (ranks - 1) * frame(nodes * count)
    part = -(-count // (32 * ranks)) * 32  # each sums a part, and hands it out
    sizes = [max(0, min(part, count - other * part)) for other in range(ranks)]
    given = sum(frame(nodes * size) for other, size in enumerate(sizes) if other != rank)
    return given + (ranks - 1) * frame(sizes[rank])
