"""Numba for kernels alone: it turns functions into LLVM modules for any processor, and loads nothing.

Numba's own target makes every helper ready to be called from Python: two wrappers, machine code in this process, and
its reference counting linked in and optimised anew each time, which was more than half of a kernel's compile time.
Helpers are inlined into their kernel, so a `KernelTarget` leaves all of that out. For the same reason it can compile
for another processor than this one.

A module-level helper (`@njit` outside of a `build_...`) belongs to the first target that compiled it: one process
compiles for one target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import jit
from numba.core import callconv, codegen, cpu, registry, typed_passes, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import Dispatcher
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_override, target_registry
from numba.core.typing import Context

from edgerun.device.cpu_features import cpu_features

_ARM = frozenset(("neon", "dotprod", "i8mm"))  # features that an `Isa` may need there
_NAME = "edgerun"  # of the target, among Numba's


@dataclass(frozen=True)
class Machine:
    """What code is made for, in LLVM's words. relocation: "static" for code that an engine links in this process,
    "pic" for libraries."""

    triple: str
    cpu: str
    features: str
    relocation: str
    code_model: str


def host_machine() -> Machine:
    """This processor, as Numba's own target describes it to LLVM."""
    triple = str(llvm.get_process_triple())
    static = triple.startswith(("x86_64", "i686", "amd64"))
    features = codegen.get_host_cpu_features()
    if triple.startswith(("aarch64", "arm64")):  # LLVM does not always know: not under emulation
        features = ",".join(filter(None, [features, *(f"+{name}" for name in sorted(cpu_features() & _ARM))]))
    return Machine(triple, llvm.get_host_cpu_name(), features, "static" if static else "default", "jitdefault")


def made_for(feature: str) -> bool:
    """Whether what is being compiled is for a processor with this feature, in LLVM's words."""
    machine = _Kernels.made_for
    return machine is not None and f"+{feature}" in machine.features.split(",")


@cache
def kernel_target(machine: Machine) -> KernelTarget:
    """The target for `machine`, made once; loading Numba's typing rules takes it half a second. RuntimeError for a
    second machine in one process."""
    if _Kernels.made_for not in (None, machine):
        raise RuntimeError(f"this process compiles for {_Kernels.made_for}, and cannot for {machine}")
    _Kernels.made_for = machine
    return KernelTarget(machine)


class _Kernels(CPU):  # type: ignore[misc]
    """The target's name as a class, which is how Numba looks it up."""

    made_for: Machine | None = None


class KernelTarget(registry.CPUTarget):  # type: ignore[misc]
    """In the place of Numba's `cpu_target`."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(_NAME)
        self._machine = machine
        target_registry[_NAME] = _Kernels
        dispatcher_registry[_Kernels] = type("KernelDispatcher", (Dispatcher,), {"targetdescr": self})
        jit_registry[_Kernels] = partial(jit, _target=_NAME)  # for what Numba itself writes in Python

    @cached_property
    def _toplevel_target_context(self) -> Any:
        return _KernelContext(self.typing_context, self._machine)

    @cached_property
    def _toplevel_typing_context(self) -> Any:
        return _KernelTyping()

    def compiling(self) -> Any:
        """While this context lasts, intrinsics that this thread meets are this target's."""
        return target_override(_NAME)

    def adopt(self, function: Callable[..., Any]) -> None:
        """Compile all helpers that `function` calls, and that these call, for this target."""
        for helper in _helpers(function, set()):
            helper._compiler.targetdescr = self
            helper._compiler.pipeline_class = KernelCompiler
            helper.typingctx, helper.targetctx = self.typing_context, self.target_context


def _helpers(function: Callable[..., Any], seen: set[int]) -> Iterator[Any]:
    """Numba's dispatchers that a Python function can name, directly or through others."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    for each in (*cells, *named):
        if isinstance(each, Dispatcher) and id(each) not in seen:
            seen.add(id(each))
            yield each
            yield from _helpers(each.py_func, seen)


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """Numba's passes without those for what no kernel has: closures, `with`, exceptions, literals, arrays."""

    _PASSES = (
        untyped_passes.TranslateByteCode,
        untyped_passes.FixupArgs,
        untyped_passes.IRProcessing,
        untyped_passes.RewriteSemanticConstants,
        untyped_passes.DeadBranchPrune,
        untyped_passes.GenericRewrites,
        untyped_passes.ReconstructSSA,
        typed_passes.NopythonTypeInference,
        typed_passes.PreLowerStripPhis,
        typed_passes.IRLegalization,
        typed_passes.NativeLowering,
        typed_passes.NoPythonBackend,
    )

    def define_pipelines(self) -> list[Any]:
        passes = PassManager("kernel")
        for each in self._PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class _KernelTyping(Context):  # type: ignore[misc]
    """Typing rules of Python's own numbers alone. With those of arrays, lists and sets Numba tries a dozen more
    candidates for every `+`: 5 % of a kernel's time, and 0.1 s for loading them."""

    def load_additional_registries(self) -> None:
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)


class _KernelContext(cpu.CPUContext):  # type: ignore[misc]
    """Functions without Python around them. The error model is the kernel's to choose, so that none raises."""

    _internal_codegen: Any

    def __init__(self, typing: Any, machine: Machine) -> None:
        self._machine = machine
        super().__init__(typing, _NAME)

    def init(self) -> None:
        self.is32bit = False
        self._internal_codegen = _KernelCodegen(self._machine)

    def load_additional_registries(self) -> None:
        """The implementations that kernels use: of Python's numbers, tuples and ranges, not of arrays and strings."""
        from numba.core import optional  # noqa: F401
        from numba.cpython import builtins, enumimpl, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401
        from numba.np import npyimpl

        self.install_registry(mathimpl.registry)
        self.install_registry(npyimpl.registry)

    @property
    def call_conv(self) -> Any:
        return callconv.CPUCallConv(self)

    def post_lowering(self, mod: Any, library: Any) -> None:
        """No reference counting is linked in: kernels know no objects."""

    def create_cpython_wrapper(self, *arguments: Any, **options: Any) -> None:
        """Nobody calls it from Python."""

    def create_cfunc_wrapper(self, *arguments: Any, **options: Any) -> None:
        """Nor from C."""

    def get_executable(self, library: Any, fndesc: Any, env: Any) -> Any:
        """What Numba knows the function by. It has no address here, and Numba wants a function written in C: this one
        is like no other and does no harm."""
        return object().__sizeof__


class _KernelLibrary(codegen.AOTCodeLibrary):  # type: ignore[misc]
    """A function's module and those that it calls, as they are written: only a whole kernel is optimised, once, when
    all of its helpers are in it (`optimised`)."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Numba's own target would do it for every helper, and again for all who call it."""

    def _finalize_specific(self) -> None:
        """Nor is there machine code of helpers, which nobody runs."""


def optimised(module: Any, machine: Any) -> None:
    """Run LLVM's passes over a kernel's module, for an LLVM target machine."""
    builder = codegen.create_pass_builder(machine, opt=3, loop_vectorize=True)
    builder.getModulePassManager().run(module, builder)


class _KernelCodegen(codegen.CPUCodegen):  # type: ignore[misc]
    """Numba's passes over modules for one machine, without an engine."""

    _library_class = _KernelLibrary

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        super().__init__("edgerun")

    def _init(self, llvm_module: Any) -> None:
        llvm.initialize_all_targets()  # Numba initialises this processor's alone
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(self._machine.triple)
        self._tm_features = self._machine.features
        self._tm = target.create_target_machine(
            cpu=self._machine.cpu,
            features=self._machine.features,
            opt=3,
            reloc=self._machine.relocation,
            codemodel=self._machine.code_model,
            jit=self._machine.code_model == "jitdefault",
        )
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0  # as Numba's own: of the pass before the full one

    def _create_empty_module(self, name: str) -> Any:
        module = ir.Module(name)
        module.triple = self._machine.triple
        if self._data_layout:
            module.data_layout = self._data_layout
        return module

    def _add_module(self, module: Any) -> None:
        """There is no engine to give it to."""

    def _get_host_cpu_name(self) -> str:
        return self._machine.cpu

    def _get_host_cpu_features(self) -> str:
        return self._machine.features
