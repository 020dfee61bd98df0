"""Functions for images and boxes: against PyTorch, and by what they must keep."""

import numpy as np
import pytest
from peers import peer

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (3, 7), (1, 1), (9, 5)])
def test_interpolation_is_that_of_torch(size):
    torch = peer("torch")
    x = RNG.standard_normal((2, 3, 4, 6))
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(F.interpolate(Tensor(x), size).numpy(), expected.numpy(), atol=1e-12)


def test_interpolation_keeps_planes_and_images_of_the_same_size():
    x = RNG.standard_normal((1, 2, 5, 3))
    np.testing.assert_allclose(F.interpolate(Tensor(x), (5, 3)).numpy(), x, atol=1e-15)
    rows, columns = np.mgrid[0:4, 0:6] + 0.5  # positions of the centres of pixels
    larger = F.interpolate(Tensor((2 * rows - 3 * columns)[None, None]), (8, 12)).numpy()[0, 0]
    rows, columns = (np.mgrid[0:8, 0:12] + 0.5) / 2
    inside = (slice(1, -1), slice(1, -1))  # at the edge the outermost pixels are repeated
    np.testing.assert_allclose(larger[inside], (2 * rows - 3 * columns)[inside], atol=1e-12)


def test_a_pixel_shuffle_is_that_of_torch_and_loses_nothing():
    x = RNG.standard_normal((2, 18, 2, 4))
    y = F.pixel_shuffle(Tensor(x), 3).numpy()
    np.testing.assert_array_equal(np.sort(y, axis=None), np.sort(x, axis=None))
    np.testing.assert_array_equal(y[:, 1, ::3, 1::3], x[:, 10])
    torch = peer("torch")
    np.testing.assert_array_equal(y, torch.nn.functional.pixel_shuffle(torch.from_numpy(x), 3).numpy())


def box(*corners: float) -> np.ndarray:
    return np.array(corners, float)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (box(0, 0, 2, 2), box(0, 0, 2, 2), 1.0),
        (box(0, 0, 2, 2), box(1, 0, 3, 2), 2 / 6),
        (box(0, 0, 2, 2), box(0, 0, 1, 1), 1 / 4),
        (box(0, 0, 2, 1), box(1, 0, 2, 2), 1 / 3 - (4 - 3) / 4),
        (box(0, 0, 1, 1), box(3, 0, 4, 1), -2 / 4),
        (box(0, 0, 1, 1), box(9, 9, 10, 10), -98 / 100),
        (box(1, 1, 1, 1), box(1, 1, 1, 1), 0.0),
    ],
)
def test_the_generalized_iou_of_boxes_that_can_be_counted(x, y, expected):
    for one, other in ((x, y), (y, x)):
        np.testing.assert_allclose(F.generalized_iou(one, other).numpy(), expected, rtol=1e-14)


def test_the_generalized_iou_is_that_of_all_pairs_by_broadcasting_and_has_a_gradient_apart():
    x, y = (np.concatenate([c := RNG.uniform(0, 1, (n, 2)), c + RNG.uniform(0.1, 1, (n, 2))], axis=1) for n in (3, 4))
    pairs = F.generalized_iou(x[:, None], y[None]).numpy()
    assert pairs.shape == (3, 4)
    for i, j in np.ndindex(3, 4):
        np.testing.assert_allclose(pairs[i, j], F.generalized_iou(x[i], y[j]).numpy())
    apart = Tensor(box(0, 0, 1, 1), requires_grad=True)
    (gradient,) = tv.grad(F.generalized_iou(apart, box(2, 0, 3, 1)), [apart])
    assert gradient.numpy()[2] > 0  # to grow towards the other one raises it


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"both must be \(..., 4\)"):
        F.generalized_iou(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="upscale_factor is 2"):
        F.pixel_shuffle(Tensor(np.zeros((1, 6, 2, 2))), 2)
    with pytest.raises(ValueError, match="at least one pixel"):
        F.interpolate(Tensor(np.zeros((1, 1, 0, 2))), 2)
