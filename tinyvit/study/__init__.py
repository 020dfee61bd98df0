"""Looking at gradients: recording what runs, telling its steps, and checking it against finite differences."""

from ..engine.gradcheck import GradcheckError, gradcheck
from .check.check import Check, check, check_rule
from .rules.narrate import Narration, narrate_backward, narrate_forward
from .trace import Trace, trace

__all__ = [
    "Check", "GradcheckError", "Narration", "Trace", "check", "check_rule", "gradcheck", "narrate_backward",
    "narrate_forward", "trace",
]  # fmt: skip
