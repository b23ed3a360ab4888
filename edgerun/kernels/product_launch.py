"""Products of activations with packed weights: any number, of any formats, one launch for each format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import layout
from edgerun.kernels.abi import Product
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.interface import F32, Matrix
from edgerun.kernels.isa import Isa
from edgerun.kernels.kernel_names import MATRIX_KERNELS, form_of
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layer_launch import copy
from edgerun.kernels.layout import layout_bytes
from edgerun.kernels.memory import address
from edgerun.kernels.program import Launch
from edgerun.kernels.reference import ReferenceKernels, check_matmul, check_matmul_heads
from edgerun.kernels.rows import Form, Rows

_MOST_GRAIN = 16  # groups of weight rows that a thread takes at a time, at most
_PIECES = 8  # of each thread, at least


Job = tuple[Matrix, Rows, int, int, F32]  # weights w, rows, the first of them, how many, out (so many, w.rows)


class ProductLaunch:
    """Lays out products and launches them."""

    def __init__(self, launcher: Launcher, isa: Isa) -> None:
        self._launcher = launcher
        self._lanes = isa.lanes
        self._isa = isa
        self._together = max(isa.tiles.together, isa.float_tiles.together)  # groups of weight rows
        self._forms = {type: form_of(type, isa) for type in FORMATS}
        self._by_parts = {MATRIX_KERNELS[type].matmul for type, form in self._forms.items() if form == "parts"}
        self._plain = ReferenceKernels()

    def run(self, jobs: Sequence[Job], *, add: bool = False) -> None:
        """out = rows times w, transposed, or += with `add`, for each job. UsageError where shapes do not fit."""
        products: dict[str, list[Product]] = {}  # of each kernel
        items: dict[str, int] = {}  # of each kernel: groups of weight rows
        lanes, adds = self._lanes, int(add)
        with self._launcher.lock:
            for w, x, first, tokens, out in jobs:
                if w.layout == "gguf":
                    self._plain_product(w, x, first, tokens, out, add)
                    continue
                if x.x.shape[1] != w.cols or out.shape != (tokens, w.rows) or not out.flags.c_contiguous:
                    check_matmul(w, x.x[first : first + tokens], out)
                kernels = MATRIX_KERNELS[w.type]
                quants, dq, scales, ds, sums, dc = x.form(self.form(w.type))
                name, groups, blocks, stride = kernels.matmul, -(-w.rows // lanes), w.cols // kernels.block, 4 * w.rows
                mine, item = products.setdefault(name, []), items.get(name, 0)
                weights, target = w.address, address(out)
                at_once = self._rows_at_once(w)
                for low in range(0, tokens, at_once):
                    row, rows, to = first + low, min(at_once, tokens - low), target + low * stride
                    q, s, c = quants + row * dq, scales + row * ds, sums + row * dc
                    mine.append(Product(item, weights, to, rows, blocks, w.rows, stride, adds, q, dq, s, ds, c, dc))
                    item += groups
                items[name] = item
            for name, mine in products.items():
                by_parts = name in self._by_parts and mine[0].rows > 1
                self._launcher.launch_products(name, mine, items[name], self._grain(items[name], by_parts))

    def run_heads(self, w: Matrix, x: Rows, out: F32) -> None:
        """See `interface.Kernels.matmul_heads`. One launch where each head's rows begin a group of rows; otherwise all
        rows are multiplied with each head, and the head's are taken."""
        tokens, heads, rows = check_matmul_heads(w, x.x, out)
        if w.layout == "gguf":
            self._launcher.spoil("a product in numpy")
            self._plain.matmul_heads(w, self._plain.activations(x.x), out)
            return
        if rows % self._lanes:
            self._heads_of_all(w, x, out)
            return
        kernels = MATRIX_KERNELS[w.type]
        quants, dq, scales, ds, sums, dc = x.form(self.form(w.type))
        groups, blocks = rows // self._lanes, w.cols // kernels.block
        head_bytes = groups * layout_bytes(w.layout, w.type, self._lanes, w.cols)
        dt, dh, target, at_once = out.strides[0], out.strides[1], address(out), self._rows_at_once(w)
        products: list[Product] = []
        for head in range(heads):
            weights, to = w.address + head * head_bytes, target + head * dh
            for low in range(0, tokens, at_once):
                row, count, item = low * heads + head, min(at_once, tokens - low), len(products) * groups
                at = quants + row * dq, dq * heads, scales + row * ds, ds * heads, sums + row * dc, dc * heads
                products.append(Product(item, weights, to + low * dt, count, blocks, rows, dt, 0, *at))
        items = groups * len(products)
        with self._launcher.lock:
            self._launcher.launch_products(kernels.matmul, products, items, self._grain(items))

    def _heads_of_all(self, w: Matrix, x: Rows, out: F32) -> None:
        tokens, heads, rows = out.shape
        every = np.empty((tokens * heads, w.rows), np.float32)
        self._launcher.keep(every)
        self.run([(w, x, 0, len(every), every)])
        for head in range(heads):
            copy(self._launcher, every[head::heads, head * rows : (head + 1) * rows], out[:, head])

    def laid_out(self, weights: Sequence[Matrix], rows: Sequence[Form], outs: Sequence[int]) -> Launch:
        """The launch of one row times each of some matrices that lie alike. outs: addresses of (w.rows,) f32."""
        like = weights[0]
        groups, blocks = -(-like.rows // self._lanes), like.cols // MATRIX_KERNELS[like.type].block
        products = [
            Product(index * groups, w.address, out, 1, blocks, like.rows, 4 * like.rows, 0, *row)
            for index, (w, row, out) in enumerate(zip(weights, rows, outs, strict=True))
        ]
        items = groups * len(products)
        name = MATRIX_KERNELS[like.type].matmul
        return self._launcher.products_laid_out(name, products, items, self._grain(items))

    def form(self, type: GgmlType) -> str:
        """Of activations: see `kernel_names.form_of`."""
        return self._forms[type]

    def _rows_at_once(self, w: Matrix) -> int:
        """Of activations in a product."""
        if self._isa.tile_products:
            return layout.FLOAT_ROWS_AT_ONCE if self.form(w.type) == "f32" else layout.TILE_ROWS_AT_ONCE
        return layout.rows_at_once(w.cols)

    def _grain(self, items: int, by_parts: bool = False) -> int:
        """How many groups of weight rows a thread takes at a time: whole tiles."""
        together = max(self._together, layout.PARTS_GROUPS) if by_parts else self._together
        return max(1, min(_MOST_GRAIN, items // (self._launcher.threads * _PIECES)) // together) * together

    def _plain_product(self, w: Matrix, x: Rows, first: int, tokens: int, out: F32, add: bool) -> None:
        """Of a type without kernels."""
        self._launcher.spoil("a product in numpy")
        self._plain.matmul(w, self._plain.activations(x.x[first : first + tokens]), out, add=add)
