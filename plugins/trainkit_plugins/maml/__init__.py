"""Model-agnostic meta-learning: the inner loop as functions, the few-shot papers' network, and the plan of a task."""

from .conv4 import Conv4
from .inner import InnerLoop, TaskResult, adapt, plan_for, predict, support_loss, task_loss, trajectory
from .isolation import adapted_names, head_names, isolate, norm_names, refresh
from .plan import TaskPlan

__all__ = [
    "Conv4",
    "InnerLoop",
    "TaskPlan",
    "TaskResult",
    "adapt",
    "adapted_names",
    "head_names",
    "isolate",
    "norm_names",
    "plan_for",
    "predict",
    "refresh",
    "support_loss",
    "task_loss",
    "trajectory",
]
