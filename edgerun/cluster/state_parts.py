"""What each rank has of a block of recurrent states, and how a block of the whole model is put together of these.

In a block of the whole model layers lie as in a device's that is alone (`kv.states.state_layouts`): columns of
convolutions and heads of matrices in the model's order. A rank's block has those of its share, in the order of its
shard. A head's matrix is the same bytes in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.divided import Ranges, layers_divided
from edgerun.kernels.states import StateLayout
from edgerun.kv.states import block_bytes
from edgerun.models.holdings import states_of
from edgerun.models.share import Share, spec_of_share
from edgerun.models.spec import ModelSpec

U8 = NDArray[np.uint8]
Ids = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class StatePart:
    """A rank's part of blocks. whole, mine: each layer's place in a block of the model and of the rank; cols, heads: of
    each layer, which of the model's the rank has, in its order."""

    whole: Mapping[int, StateLayout]
    mine: Mapping[int, StateLayout]
    cols: Mapping[int, Ids]
    heads: Mapping[int, Ids]

    @property
    def n_bytes(self) -> int:
        """Of a block of the rank."""
        return block_bytes(self.mine)

    def pick(self, block: U8) -> U8:
        """Of a block of the model what the rank has, (n_bytes,): new."""
        part = np.zeros(self.n_bytes, np.uint8)
        for theirs, mine, some in self._arrays(block, part):
            mine[...] = theirs[some]
        return part

    def put(self, part: U8, block: U8) -> None:
        """A rank's block becomes part of the model's."""
        for theirs, mine, some in self._arrays(block, part):
            theirs[some] = mine

    def _arrays(self, block: U8, part: U8) -> Iterator[tuple[U8, U8, tuple[Ids | slice, ...]]]:
        """(of the model's block, of the rank's, where in the first the second lies), layer by layer: not copies."""
        for layer, whole in self.whole.items():
            mine = self.mine[layer]
            if self.cols[layer].size:
                yield _columns(block, whole), _columns(part, mine), (slice(None), self.cols[layer])
            if self.heads[layer].size:
                yield _matrices(block, whole), _matrices(part, mine), (self.heads[layer],)


def state_part(spec: ModelSpec, share: Share) -> StatePart:
    """Of a share of the whole model `spec`."""
    whole, layers = states_of(spec).layouts, layers_divided(spec, share)
    cols, heads = {}, {}
    for layer in whole:
        made = layers[layer].made
        is_convolution = spec.layers[layer].conv_taps > 0
        cols[layer] = _ids(made["shortconv.conv" if is_convolution else "ssm_conv1d"])
        heads[layer] = _ids(() if is_convolution else made["ssm_dt"])
    return StatePart(whole, states_of(spec_of_share(spec, share)).layouts, cols, heads)


def all_states(spec: ModelSpec) -> StatePart:
    """Of a device that has all of the model."""
    whole = states_of(spec).layouts
    cols = {layer: np.arange(each.conv_cols) for layer, each in whole.items()}
    return StatePart(whole, whole, cols, {layer: np.arange(each.heads) for layer, each in whole.items()})


def _ids(ranges: Ranges) -> Ids:
    return np.array([each for some in ranges for each in some], np.intp)


def _columns(block: U8, layout: StateLayout) -> U8:
    """(conv_rows, conv_cols, 4)."""
    n_bytes = 4 * layout.conv_rows * layout.conv_cols
    return block[layout.conv_at : layout.conv_at + n_bytes].reshape(layout.conv_rows, layout.conv_cols, 4)


def _matrices(block: U8, layout: StateLayout) -> U8:
    """(heads, bytes of each)."""
    each = 4 * layout.key_dim * layout.value_dim
    return block[layout.matrices_at : layout.matrices_at + layout.heads * each].reshape(layout.heads, each)
