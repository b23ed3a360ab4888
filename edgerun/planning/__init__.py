"""Will a model fit, before anything of it is read."""

from edgerun.planning.fit import Fit, check_fit, estimate_memory

__all__ = ["Fit", "check_fit", "estimate_memory"]
