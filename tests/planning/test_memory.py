"""Plans: everything accounted for, never over the budget, monotonous, and refusals that name what would do."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.device import MemoryLimits
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import GgmlType, TensorInfo
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kernels.layout import PackedSizes
from edgerun.kv import KvOptions
from edgerun.models import holdings
from edgerun.models.families import FAMILIES
from edgerun.models.spec import LayerNumbers, ModelSpec, Rotation
from edgerun.planning import plan_memory, process_budget
from edgerun.units import format_size, parse_size_bytes
from edgerun.weights import make_catalog

MIB, GIB = 1 << 20, 1 << 30
SIZES = PackedSizes(8)


def header(arch, layers, d, ff, heads, kv, vocab, experts=0, used=0, type=GgmlType.Q4_0, window=0):
    """(catalog, spec) of a model of this shape, with no file behind it."""
    hd = d // heads
    shapes = {"token_embd.weight": (vocab, d), "output.weight": (vocab, d), "output_norm.weight": (d,)}
    for layer in range(layers):
        b = f"blk.{layer}."
        shapes |= {b + "attn_norm.weight": (d,), b + "ffn_norm.weight": (d,)}
        shapes |= {b + "attn_q.weight": (d, d), b + "attn_output.weight": (d, d)}
        shapes |= {b + "attn_k.weight": (kv * hd, d), b + "attn_v.weight": (kv * hd, d)}
        if experts:
            shapes[b + "ffn_gate_inp.weight"] = (experts, d)
            for part, shape in (("gate", (ff, d)), ("up", (ff, d)), ("down", (d, ff))):
                shapes[f"{b}ffn_{part}_exps.weight"] = (experts, *shape)
        else:
            shapes |= {f"{b}ffn_{part}.weight": (ff, d) for part in ("gate", "up")}
            shapes[b + "ffn_down.weight"] = (d, ff)
    tensors = {}
    for name, shape in shapes.items():
        kind = GgmlType.F32 if len(shape) == 1 else type
        n_bytes = kind.row_bytes(shape[-1])
        for dim in shape[:-1]:
            n_bytes *= dim
        tensors[name] = TensorInfo(name, shape, kind, n_bytes, None, 0)
    family = FAMILIES[arch]
    numbers = LayerNumbers(
        heads, kv, hd, hd, ff, Rotation(hd, 1e4), n_experts=experts, n_experts_used=used, d_ff_expert=ff
    )
    every = family.window_pattern
    windows = [window if every and layer % every != every - 1 else 0 for layer in range(layers)]
    spec = ModelSpec(arch, family, tuple(replace(numbers, window=each) for each in windows), d, vocab, 4096, 1e-5)
    return make_catalog(tensors, layers), replace(spec, tensors=tensors)


OLMOE = header("olmoe", 16, 2048, 1024, 16, 16, 50304, experts=64, used=8)
LLAMA_7B = header("llama", 32, 4096, 11008, 32, 32, 32000)
GEMMA3_4B = header("gemma3", 34, 2560, 10240, 8, 4, 262144, window=1024)
SMALLTHINKER = header("smallthinker", 32, 1536, 768, 12, 2, 151936, experts=32, used=4, window=1024)


def plan(model, budget, context=512):
    catalog, spec = model
    return plan_memory(
        "m.gguf",
        catalog,
        spec,
        SIZES,
        context=context,
        budget_bytes=budget,
        runtime_bytes=100 * MIB,
        limited="--memory",
    )


@pytest.mark.parametrize("model", [OLMOE, LLAMA_7B, GEMMA3_4B, SMALLTHINKER], ids=lambda model: model[1].architecture)
@settings(max_examples=80, deadline=None)
@given(budget=st.integers(100 * MIB, 8 * GIB), context=st.integers(1, 8192))
def test_never_over_the_budget(model, budget, context):
    try:
        made = plan(model, budget, context)
    except DoesNotFitError as error:
        floor = re.search(r"at least ([\d.]+) (MiB|GiB)", str(error))
        assert floor is not None
        needed = float(floor[1]) * {"MiB": MIB, "GiB": GIB}[floor[2]]
        assert needed > budget * 0.99
        plan(model, int(needed * 1.02), context)  # what it asks for does
        return
    assert made.total_bytes <= budget
    assert made.floor_bytes <= budget
    assert made.kv_bytes >= holdings.kv_bytes(model[1], context, max(256, made.wave_tokens)), "what a wave of it takes"
    assert made.kv_bytes <= holdings.kv_bytes(model[1], context)
    assert 0 <= made.cached_share <= 1
    if made.mode == "experts":
        assert made.slots >= 2 * model[1].n_experts_used
    if made.mode == "layers":
        assert 0 <= made.pinned <= made.layers - 2


SMALL = {
    (arch, type): header(arch, 3, 512, 1024, 8, 2, 3000, experts=experts, used=experts // 4, type=type)
    for arch, experts in (("llama", 0), ("olmoe", 8))
    for type in (GgmlType.F32, GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q4_K)
}


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from([OLMOE, LLAMA_7B, GEMMA3_4B, SMALLTHINKER, *SMALL.values()]),
    context=st.integers(1, 8192),
    runtime=st.integers(50 * MIB, 3 * GIB),
)
def test_the_floor_is_one_number(model, context, runtime):
    """What a plan names, what a refusal names, and what is enough."""

    def within(budget, context=context):
        catalog, spec = model
        return plan_memory(
            "m", catalog, spec, SIZES, context=context, budget_bytes=budget, runtime_bytes=runtime, limited="--memory"
        )

    floor = within(1 << 50).floor_bytes
    assert parse_size_bytes(format_size(floor)) == floor, "it can be typed"
    made = within(floor)
    assert made.floor_bytes == floor
    assert made.total_bytes <= floor
    for budget in (floor - 1, floor - MIB, floor // 2):
        with pytest.raises(DoesNotFitError) as caught:
            within(budget)
        assert f"needs at least {format_size(floor)} of memory" in str(caught.value)
        smaller = re.search(r"a context of (\d+) would do", str(caught.value))
        if smaller:
            assert within(budget, int(smaller[1])).floor_bytes <= budget


@pytest.mark.parametrize("model", [OLMOE, LLAMA_7B, GEMMA3_4B, SMALLTHINKER], ids=lambda model: model[1].architecture)
def test_more_memory_keeps_more(model):
    shares = [plan(model, budget * 256 * MIB).cached_share for budget in range(6, 24)]
    assert shares == sorted(shares)
    assert shares[0] < 0.6
    assert shares[-1] == 1.0


def test_modes():
    assert plan(OLMOE, 8 * GIB).mode == plan(LLAMA_7B, 8 * GIB).mode == "resident"
    assert plan(OLMOE, 2 * GIB).mode == "experts"
    assert plan(LLAMA_7B, 2 * GIB).mode == "layers"


def test_a_refusal_names_what_lowers_it():
    with pytest.raises(DoesNotFitError, match=r"a context of \d+ would do") as caught:
        plan(LLAMA_7B, GIB, context=4096)
    assert "(--memory)" in str(caught.value)
    smaller = int(re.search(r"a context of (\d+)", str(caught.value))[1])
    assert plan(LLAMA_7B, GIB, smaller).mode == "layers"
    with pytest.raises(DoesNotFitError, match="give it more memory, or take a smaller model"):
        plan(LLAMA_7B, 200 * MIB, 256)


@pytest.mark.parametrize(
    ("asked", "memory", "private", "expected"),
    [
        (GIB, MemoryLimits(8 * GIB, 6 * GIB), 0, (GIB, "--memory")),
        (7 * GIB, MemoryLimits(8 * GIB, 6 * GIB), 0, (6 * GIB, "what is available")),
        (None, MemoryLimits(8 * GIB, 6 * GIB, 2 * GIB), 0, (2 * GIB, "this process's memory limit")),
        (None, MemoryLimits(8 * GIB, GIB, 2 * GIB), GIB // 2, (3 * GIB // 2, "this process's memory limit")),
        (3 * GIB, MemoryLimits(8 * GIB, GIB, 2 * GIB), 0, (GIB, "this process's memory limit")),
    ],
)
def test_budget(asked, memory, private, expected):
    assert process_budget(asked, memory, private) == expected


def test_others_keep_a_little():
    budget, whose = process_budget(None, MemoryLimits(8 * GIB, 6 * GIB), 0)
    assert 5 * GIB < budget < 6 * GIB
    assert whose == "what is available"


def test_windows_keep_what_can_be_seen():
    """Gemma 3: 29 of 34 layers see 1,024 positions."""
    _, spec = GEMMA3_4B
    long, short = 32768, 1024
    assert holdings.kv_bytes(spec, long, 256) < 0.21 * holdings.kv_bytes(spec, long)
    assert holdings.kv_bytes(spec, short, 256) == holdings.kv_bytes(spec, short)
    position = 2 * spec.layers[0].n_kv_heads * 2 * spec.layers[0].head_dim_k
    assert holdings.kv_bytes(spec, long) == 34 * position * long
    assert plan(GEMMA3_4B, 64 * GIB, long).kv_bytes == position * (5 * long + 29 * 256 * 7)


@pytest.mark.parametrize(("kv", "share"), [("q8_0", 0.54), ("q4_0", 0.29)])
def test_quantised_keys_and_values(kv, share):
    _, spec = GEMMA3_4B
    kept = KvOptions(KV_FORMATS[kv], KV_FORMATS[kv])
    assert holdings.kv_bytes(spec, 4096, kv=kept) <= share * holdings.kv_bytes(spec, 4096)
