"""Model-agnostic meta-learning: the inner loop as functions, the few-shot papers' network, and
the plan of a task.
"""

from .conv4 import Conv4
from .forward import predict
from .inner import InnerLoop, adapt, plan_for, support_loss, trajectory
from .isolation import adapted_names, head_names, isolate, norm_names, refresh
from .outer import TaskResult, predict_task, query_logits, step_weights, task_loss
from .plan import TaskPlan
from .tasks import MetaGradient, Task, Workers, deliver, meta_gradient

__all__ = [
    "Conv4",
    "InnerLoop",
    "MetaGradient",
    "Task",
    "TaskPlan",
    "TaskResult",
    "Workers",
    "adapt",
    "adapted_names",
    "deliver",
    "head_names",
    "isolate",
    "meta_gradient",
    "norm_names",
    "plan_for",
    "predict",
    "predict_task",
    "query_logits",
    "refresh",
    "step_weights",
    "support_loss",
    "task_loss",
    "trajectory",
]
