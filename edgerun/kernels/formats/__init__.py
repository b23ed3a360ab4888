"""The weight formats that have kernels, one declaration a format. `base` says what one is."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Format
from edgerun.kernels.formats.floats import F16, F32, Bf16
from edgerun.kernels.formats.iq1_m import Iq1M
from edgerun.kernels.formats.iq1_s import Iq1S
from edgerun.kernels.formats.iq2_s import Iq2S
from edgerun.kernels.formats.iq2_xs import Iq2Xs
from edgerun.kernels.formats.iq2_xxs import Iq2Xxs
from edgerun.kernels.formats.iq3_s import Iq3S
from edgerun.kernels.formats.iq3_xxs import Iq3Xxs
from edgerun.kernels.formats.iq4_nl import Iq4Nl
from edgerun.kernels.formats.iq4_xs import Iq4Xs
from edgerun.kernels.formats.mxfp4 import Mxfp4
from edgerun.kernels.formats.nvfp4 import Nvfp4
from edgerun.kernels.formats.q1_0 import Q1_0
from edgerun.kernels.formats.q2_0 import Q2_0
from edgerun.kernels.formats.q2_k import Q2_K
from edgerun.kernels.formats.q3_k import Q3_K
from edgerun.kernels.formats.q4_0 import Q4_0
from edgerun.kernels.formats.q4_1 import Q4_1
from edgerun.kernels.formats.q4_k import Q4_K, Q5_K
from edgerun.kernels.formats.q5_0 import Q5_0, Q5_1
from edgerun.kernels.formats.q6_k import Q6_K
from edgerun.kernels.formats.q8_0 import Q8_0
from edgerun.kernels.formats.tq1_0 import Tq1_0
from edgerun.kernels.formats.tq2_0 import Tq2_0

_ALL = (
    *(F32(), F16(), Bf16(), Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q8_0(), Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K()),
    *(Iq1S(), Iq1M(), Iq2Xxs(), Iq2Xs(), Iq2S(), Iq3Xxs(), Iq3S()),
    *(Iq4Nl(), Iq4Xs(), Mxfp4(), Nvfp4(), Q1_0(), Q2_0(), Tq1_0(), Tq2_0()),
)
FORMATS: dict[GgmlType, Format] = {each.type: each for each in _ALL}
BY_NAME: dict[str, Format] = {each.name: each for each in _ALL}
