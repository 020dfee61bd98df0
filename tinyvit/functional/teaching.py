"""What the study page teaches with an operation: a mistake to find in its gradient rule, and questions for students.

Both are plain data. `tinyvit.study` plants the mistake and asks the questions. It also shows the letters of axes that
`Op.letters` gives, as in "x y: B N C": "..." stands for leading axes, "|" separates alternatives, and "usually" begins
letters that hold in layers of this package only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIGN = "sign"  # options of a question: whether an element is positive, negative or zero
SHAPE = "shape"  # options of a question: the shape of a gradient, and two wrong ones


@dataclass(frozen=True)
class Fault:
    """A mistake that can be planted in a gradient rule, for students to find by the numeric check.

    Attributes
    ----------
    right, wrong : a piece of the rule's source, and what replaces it.
    mistake : what is wrong, in a sentence without a capital letter and a full stop.
    function : the function with that piece: a method of the operation, or a function of its module that the rule calls.
    """

    right: str
    wrong: str
    mistake: str
    function: str = "backward"


@dataclass(frozen=True)
class Question:
    """A question about a gradient, which students answer before they look at it.

    Attributes
    ----------
    text, reason : the question, and why its answer is right. In both, `{index}` stands for the element that is asked
        about, `{value}` for that element of the gradient, and `{incoming}` for the name of the output's gradient.
    array : the array that shows the answer: a gradient, "dbias", or a variable of the gradient rule, "ds".
    options : SIGN, SHAPE (of a gradient with two axes or more), or texts, of which number `answer` is right.
    element : from the application (what `backward` gets as ctx) and the gradient, the index of the element that is
        asked about; None if there is no such element. Without it, the question is about the whole array.
    """

    text: str
    reason: str
    array: str
    options: tuple[str, ...] | str
    answer: int = 0
    element: Callable[[Any, Any], tuple[int, ...] | None] | None = None
