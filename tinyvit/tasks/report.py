"""The report of an evaluation: loss, accuracies, and what was taken for what."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes
    ----------
    loss : mean over the samples, without label smoothing.
    accuracy : from 0 to 1.
    shares : further accuracies from 0 to 1, by name.
    names : names of the classes, or the vocabulary, that `confusion` counts.
    confusion : int64 (len(names), len(names)), how often each name (row) was taken for each (column), or None.
    top : for some numbers k, the share of samples whose class is among the k most probable ones.
    """

    loss: float
    accuracy: float
    shares: dict[str, float]
    names: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    top: dict[int, float] = dataclasses.field(default_factory=dict)

    def by_class(self) -> list[dict[str, Any]]:
        """Return for each class its name, its number of samples, and how many of them were right, with three measures.

        Precision is the share of right samples among those taken for the class; recall, the share among those of the
        class; f1, their harmonic mean. A measure without samples is None.
        """
        if self.confusion is None:
            return []
        right, there, taken = self.confusion.diagonal(), self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return [
            {
                "class": name,
                "samples": int(n),
                "right": int(k),
                "precision": float(k / t) if t else None,
                "recall": float(k / n) if n else None,
                "f1": float(2 * k / (n + t)) if n + t else None,
            }
            for name, n, k, t in zip(self.names, there, right, taken, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """Return loss and accuracies as values for JSON."""
        found: dict[str, Any] = {"loss": self.loss, "accuracy": self.accuracy}
        if self.shares:
            found["accuracies"] = self.shares
        return found | {f"top_{k}_accuracy": share for k, share in self.top.items()}

    def mistakes(self, most: int = 8) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes: the right name, the name it was taken for, how often."""
        if self.confusion is None:
            return []
        wrong = self.confusion * ~np.eye(len(self.names), dtype=bool)
        places = np.argsort(-wrong, axis=None, kind="stable")[: min(most, np.count_nonzero(wrong))]
        rows, columns = np.unravel_index(places, wrong.shape)
        return [(self.names[i], self.names[j], int(wrong[i, j])) for i, j in zip(rows, columns, strict=True)]
