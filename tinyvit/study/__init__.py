"""Looking at gradients: recording what runs, telling its steps, and checking it against finite differences."""

from ..engine import Tensor
from ..engine.gradcheck import GradcheckError, gradcheck
from ..nn import Module
from .check.check import Check, check, check_rule
from .notebook import module_html, tensor_html
from .rules.narrate import Narration, narrate_backward, narrate_forward
from .trace import Trace, trace

setattr(Tensor, "_repr_html_", tensor_html)  # noqa: B010  (what notebooks show)
setattr(Module, "_repr_html_", module_html)  # noqa: B010

__all__ = [
    "Check", "GradcheckError", "Narration", "Trace", "check", "check_rule", "gradcheck", "narrate_backward",
    "narrate_forward", "trace",
]  # fmt: skip
