"""The C header of a kernel library, from `edgerun.kernels.abi`.

python -m native.header > edgerun_kernels.h
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgerun.kernels import abi
from edgerun.kernels.formats.activations import Q8_SUMS_BYTES, Q8K_SUMS_BYTES
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.library import ABI_VERSION, TABLE

_BEGIN = f"""\
/* Kernels of edgerun as C functions. Made by `python -m native.header`: do not edit. */
#ifndef EDGERUN_KERNELS_H
#define EDGERUN_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define EDGERUN_ABI_VERSION {ABI_VERSION}
/* Of a block of activations: see edgerun/kernels/formats/activations.py */
#define EDGERUN_Q8_SUMS_BYTES {Q8_SUMS_BYTES}
#define EDGERUN_Q8K_SUMS_BYTES {Q8K_SUMS_BYTES}
#define EDGERUN_LIST_AT {abi.LIST_AT} /* bytes into a launch that does several things: where their list begins */

/* Does the items [low, high) of an operation; `arguments` is the address of a struct below. It allocates nothing. */
typedef void edgerun_kernel(int64_t arguments, int64_t low, int64_t high);

struct edgerun_entry {{
    const char *name;   /* "matmul_q8_0" */
    const char *digest; /* of all that the kernel's code depends on */
    void *address;      /* an edgerun_kernel, or one of the pool's functions */
}};

extern const struct edgerun_table {{
    int64_t abi_version; /* EDGERUN_ABI_VERSION */
    int64_t count;       /* of kernels */
    const char *isa;     /* the instruction set that they need: "avx2" */
    const char *built;   /* with what, for which target */
    const struct edgerun_entry *kernels;
}} {TABLE};
"""
_END = """
#ifdef __cplusplus
}
#endif
#endif
"""


def c_header(names: Iterable[str] = tuple(SOURCES)) -> str:
    """The header's text, for a library with these kernels."""
    names = list(names)
    kernels = [name for name in names if name not in abi.POOL]
    classes = list(dict.fromkeys(abi.arguments_of(name) for name in kernels))
    for head, listed in abi.LISTED.items():
        if head in classes:
            classes.insert(classes.index(head) + 1, listed)
    parts = [_BEGIN, *(_struct(each) for each in classes), ""]
    parts += [f"edgerun_kernel edgerun_{name}; /* {_tag(abi.arguments_of(name))} */" for name in kernels]
    parts += [f"{_pool(name)};" for name in names if name in abi.POOL]
    return "\n".join(parts) + _END


def _tag(arguments: type[abi.Arguments]) -> str:
    name = "".join(f"_{char.lower()}" if char.isupper() else char for char in arguments.__name__)
    return f"struct edgerun{name}"


def _struct(arguments: type[abi.Arguments]) -> str:
    return "\n".join(_lines(arguments))


def _lines(arguments: type[abi.Arguments]) -> Iterator[str]:
    yield f"\n/* {' '.join((arguments.__doc__ or '').split())} */"
    yield f"{_tag(arguments)} {{"
    for name, about in abi.slots(arguments):
        yield f"    int64_t {name}; /* {about} */"
    yield "};"


def _pool(name: str) -> str:
    result, parameters = abi.POOL[name]
    return f"{result} edgerun_{name}({', '.join(f'int64_t {each}' for each in parameters)})"


if __name__ == "__main__":
    print(c_header(), end="")
