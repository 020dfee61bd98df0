"""Study gradients: record a computation, walk through its rules step by step, check them by finite differences.

`rules/` narrates a rule, `record/` holds what a trace recorded, `check/` compares rules with finite differences,
`page/` shows a trace, and `watch/` monitors a training run.

Order: rules, record, check, page, trace, planting, dense, notebook, watch, subject, exercises.
"""

from .check.differences import Check, check, check_rule
from .check.gradcheck import GradcheckError, gradcheck
from .rules.narrate import narrate_backward, narrate_forward
from .rules.steps import Narration
from .trace import Trace, trace

__all__ = [
    "Check",
    "GradcheckError",
    "Narration",
    "Trace",
    "check",
    "check_rule",
    "gradcheck",
    "narrate_backward",
    "narrate_forward",
    "trace",
]
