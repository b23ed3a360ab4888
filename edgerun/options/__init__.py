"""What the arguments of the library and of the command line may be: each is declared once, and checked by that."""

from edgerun.options.keywords import checked_keywords
from edgerun.options.kinds import (
    Callables,
    Callback,
    Choice,
    Flag,
    Kind,
    Number,
    Size,
    Text,
    Texts,
    TokenBias,
    Whole,
    as_text,
    as_whole,
    items_of,
)
from edgerun.options.loading import (
    KERNEL_NAMES,
    KV_NAMES,
    LOADING,
    MACHINE_NAMES,
    PLAN_NAMES,
    LoadKeywords,
    LoadOptions,
    MachineKeywords,
    PlanKeywords,
    load_options,
)
from edgerun.options.refusal import refused, shown
from edgerun.options.sampling import SAMPLING
from edgerun.options.thinking import THINK, thinking_variables

__all__ = [
    "KERNEL_NAMES",
    "KV_NAMES",
    "LOADING",
    "MACHINE_NAMES",
    "PLAN_NAMES",
    "SAMPLING",
    "THINK",
    "Callables",
    "Callback",
    "Choice",
    "Flag",
    "Kind",
    "LoadKeywords",
    "LoadOptions",
    "MachineKeywords",
    "Number",
    "PlanKeywords",
    "Size",
    "Text",
    "Texts",
    "TokenBias",
    "Whole",
    "as_text",
    "as_whole",
    "checked_keywords",
    "items_of",
    "load_options",
    "refused",
    "shown",
    "thinking_variables",
]
