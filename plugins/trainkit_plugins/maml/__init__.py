"""Model-agnostic meta-learning: the inner loop as functions, the few-shot papers' network, and
the plan of a task.

The method, from initial parameters theta, for each task with a support set and a query set:

    repeat K times: theta_k+1 = theta_k - alpha * grad of the support loss at theta_k
    minimise over theta: the query loss at theta_K, differentiated through the K steps

Three names do that; begin with them:

    plan = plan_for(model, inner_lr=0.4)                           # theta and alpha
    loop = InnerLoop(steps=5)                                      # K, and the order
    loss = task_loss(model, plan, support, query, loop).loss       # of one task
    loss.backward()

`support` and `query` are anything with `inputs` [N, …] and `targets` [N], the classes counted
inside the task. A model that is trained then predicts the query set of a new task by

    logits = predict_task(model, plan, support, query.inputs, loop)
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
