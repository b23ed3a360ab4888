"""Plain LLVM of products becomes the instructions that processors have for them."""

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from edgerun.kernels.ops import word_ops
from edgerun.kernels.ops.emitter import Emitter
from edgerun.kernels.simd import I32

X86 = "x86_64-unknown-linux-gnu"


@pytest.mark.parametrize(
    ("processor", "features", "expected"),
    [
        ("haswell", ("avx2", "ssse3"), ("vpmaddubsw", "vpmaddwd", "vpshufb")),
        ("nehalem", ("ssse3",), ("pshufb",)),
    ],
)
def test_pairs_of_products_and_tables_are_one_instruction(monkeypatch, processor, features, expected):
    monkeypatch.setattr(word_ops, "made_for", lambda feature: feature in features)
    words = ir.VectorType(I32, 8)
    module = ir.Module("pairs")
    function = ir.Function(module, ir.FunctionType(words, [words, words, words]), "pairs")
    e = Emitter(ir.IRBuilder(function.append_basic_block()), 8)
    codes, x, total = function.args
    pairs = e.mul_pairs(e.table(e.mask(codes, 15), range(16)), x)
    e.b.ret(e.dot_pairs(total, pairs, e.ones(pairs)))
    assembly = assembled(str(module), processor)
    for instruction in expected:
        assert instruction in assembly


def assembled(module: str, processor: str) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(X86).create_target_machine(cpu=processor, opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    made = llvm.parse_assembly(module)
    passes.getModulePassManager().run(made, passes)
    return str(machine.emit_assembly(made))
