"""Measure frozen features: nearest neighbours and a linear classifier on top of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..context import no_grad
from ..data import normalize
from ..models import ViT

Features = NDArray[np.float32]
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@no_grad()
def features_of(
    model: ViT, images: NDArray[Any], mean: Any, std: Any, layer: int | None = None, batch: int = 16
) -> Features:
    """Return what the head would read of images, float32 (n, dim), in eval mode.

    Parameters
    ----------
    images : uint8 (n, C, H, W), of the size of the model.
    mean, std : of each channel, see `tinyvit.data.normalize`.
    layer : the number of a block whose tokens are pooled instead of the last one's, after the last layer norm.
    """
    was_training = model.training
    model.eval()
    rows = []
    try:
        for start in range(0, len(images), batch):
            x = normalize(images[start : start + batch], mean, std)
            tokens = (
                model.forward_features(x) if layer is None else model.forward_intermediates(x, [layer], norm=True)[0]
            )
            rows.append(model.forward_head(tokens, pre_logits=True).numpy().astype(np.float32))
    finally:
        model.train(was_training)
    return np.concatenate(rows)


def nearest_neighbours(
    train: Features, labels: NDArray[np.int64], test: Features, k: int = 20, temperature: float = 0.07
) -> NDArray[np.int64]:
    """Return the class of each test row by a vote of its `k` nearest train rows.

    A vote weighs exp(cosine / temperature). train (n, D), labels (n,), test (m, D) -> (m,). (Wu et al., Unsupervised
    feature learning via non-parametric instance discrimination, 2018, section 3.4.)
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test))
    k, classes, found = min(k, len(train)), int(labels.max()) + 1, []
    for start in range(0, len(b), 1024):
        cosines = b[start : start + 1024] @ a.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1) / temperature)
        votes = np.zeros((len(cosines), classes))
        np.add.at(votes, (np.arange(len(cosines))[:, None], labels[nearest]), weights)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)


class LinearProbe:
    """Multinomial logistic regression on standardized features, with an L2 penalty.

    The loss is convex, and minimized by Nesterov's accelerated gradient with the step 1 / L of its Lipschitz constant.
    """

    def __init__(self, penalty: float = 1e-3, steps: int = 300) -> None:
        self.penalty, self.steps = penalty, steps

    def fit(self, features: Features, labels: NDArray[np.int64]) -> "LinearProbe":
        """Fit features (n, D) and labels (n,)."""
        self.mean, self.std = features.mean(axis=0), features.std(axis=0) + 1e-6
        x = self._inputs(features)
        targets = np.eye(int(labels.max()) + 1)[labels]
        # The softmax has a second derivative of at most 1/2, so that of the loss is at most the largest eigenvalue / 2.
        step = 1 / (0.5 * np.linalg.norm(x.T @ x / len(x), 2) + self.penalty)
        self.weight = before = np.zeros((x.shape[1], targets.shape[1]))
        for i in range(self.steps):
            ahead = self.weight + i / (i + 3) * (self.weight - before)
            slope = x.T @ (_softmax(x @ ahead) - targets) / len(x) + self.penalty * ahead
            before, self.weight = self.weight, ahead - step * slope
        return self

    def predict(self, features: Features) -> NDArray[np.int64]:
        """Return the most probable class of each row: (n, D) -> (n,)."""
        return (self._inputs(features) @ self.weight).argmax(axis=1)

    def _inputs(self, features: Features) -> NDArray[np.float64]:
        x = (features.astype(np.float64) - self.mean) / self.std
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fitted_probe(
    features: Features, labels: NDArray[np.int64], penalties: Sequence[float] = _PENALTIES, seed: int = 0
) -> LinearProbe:
    """Fit a linear probe whose penalty is chosen on a random fifth of the samples, then fit it to all of them."""
    order = np.random.default_rng(seed).permutation(len(features))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    best = penalties[0]
    if len(held) and len(np.unique(labels[kept])) > 1:
        scores = [
            np.mean(LinearProbe(p).fit(features[kept], labels[kept]).predict(features[held]) == labels[held])
            for p in penalties
        ]
        best = penalties[int(np.argmax(scores))]
    return LinearProbe(best).fit(features, labels)
