"""Will it fit, and how: made from a header alone."""

from edgerun.planning.memory import MemoryPlan, plan_memory, process_budget

__all__ = ["MemoryPlan", "plan_memory", "process_budget"]
