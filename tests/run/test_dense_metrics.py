"""Figures of masks and boxes: hand-made predictions, exhaustive oracles, and the code of COCO where it is installed."""

import contextlib
import io
import itertools

import numpy as np
import pytest
from peers import peer

from tinyvit.data.augment import IGNORED
from tinyvit.tasks.metrics import Boxes, average_precisions, count_pixels, iou_of_all, match_pairs

# Matching -----------------------------------------------------------------------------------------------------------


def cheapest(costs):
    """The smallest sum of costs, by trying every assignment."""
    rows, columns = costs.shape
    return min(sum(costs[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(columns), rows))


def test_a_matching_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for number in range(400):
        columns = int(rng.integers(1, 7))
        rows = int(rng.integers(0, columns + 1))
        shape = (rows, columns)
        costs = rng.integers(-2, 3, shape).astype(float) if number % 2 else rng.standard_normal(shape)
        found = match_pairs(costs)
        assert len(set(found.tolist())) == rows
        assert costs[np.arange(rows), found].sum() == pytest.approx(cheapest(costs), abs=1e-12)


def test_a_matching_is_as_cheap_as_that_of_scipy():
    optimize = peer("scipy.optimize")
    rng = np.random.default_rng(1)
    for _ in range(30):
        costs = rng.standard_normal(sorted(rng.integers(1, 60, 2)))
        found = match_pairs(costs)
        assert costs[np.arange(len(costs)), found].sum() == pytest.approx(
            costs[optimize.linear_sum_assignment(costs)].sum()
        )


def test_a_matching_follows_a_permutation_of_rows_and_columns():
    rng = np.random.default_rng(2)
    costs, rows, columns = rng.standard_normal((4, 9)), rng.permutation(4), rng.permutation(9)
    np.testing.assert_array_equal(columns[match_pairs(costs[rows][:, columns])], match_pairs(costs)[rows])


def test_costs_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match="3 rows and 2 columns"):
        match_pairs(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        match_pairs(np.array([[0.0, np.nan]]))


# Boxes --------------------------------------------------------------------------------------------------------------

TRUTH = [
    Boxes(np.array([[0, 0, 10, 10], [20, 20, 40, 30]], float), np.array([0, 1])),
    Boxes(np.array([[5, 5, 15, 25]], float), np.array([0])),
]


def predicted(*images):
    """Predictions of each image as (box, class, score)."""
    return [
        Boxes(
            np.array([box for box, _, _ in image], float).reshape(-1, 4),
            np.array([label for _, label, _ in image], int),
            np.array([score for _, _, score in image], float),
        )
        for image in images
    ]


RIGHT = [[((0, 0, 10, 10), 0, 0.9), ((20, 20, 40, 30), 1, 0.8)], [((5, 5, 15, 25), 0, 0.7)]]


def precision(*images):
    return average_precisions(predicted(*images), TRUTH, 2)


def test_perfect_boxes_have_precision_one():
    np.testing.assert_array_equal(precision(*RIGHT), np.ones((2, 10)))


def test_no_boxes_have_precision_zero_and_no_truth_has_none():
    np.testing.assert_array_equal(precision([], []), np.zeros((2, 10)))
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0, int))
    assert np.isnan(average_precisions(predicted(RIGHT[0]), [nothing], 2)).all()


def test_shifted_boxes_count_up_to_their_iou():
    shifted = [((box[0] + 1, box[1], box[2] + 1, box[3]), label, score) for box, label, score in RIGHT[0]]
    table = average_precisions(predicted(shifted), TRUTH[:1], 2)
    np.testing.assert_array_equal(table[0], np.arange(10) < 7)  # 9 / 11 = 0.818
    np.testing.assert_array_equal(table[1], np.arange(10) < 9)  # 19 / 21 = 0.905


def test_a_box_found_twice_counts_against_the_precision_of_what_follows():
    twice = [*RIGHT[0], ((0, 0, 10, 10), 0, 0.85)]
    # in the order of the scores: right, wrong, right; the precision at recalls above 1/2 is 2/3
    expected = (51 * 1 + 50 * 2 / 3) / 101
    np.testing.assert_allclose(precision(twice, RIGHT[1])[0], expected)
    last = [*RIGHT[0], ((0, 0, 10, 10), 0, 0.1)]
    np.testing.assert_array_equal(precision(last, RIGHT[1])[0], 1)


def test_the_precision_at_a_recall_is_the_best_at_that_recall_or_above():
    wrong_first = [((30, 0, 35, 5), 0, 0.95), *RIGHT[0]]
    # wrong, right, right: precisions 0, 1/2, 2/3, so at every recall 2/3 can be had
    np.testing.assert_allclose(precision(wrong_first, RIGHT[1])[0], 2 / 3)


def test_swapped_classes_and_missing_images_count_as_not_found():
    swapped = [[(box, 1 - label, score) for box, label, score in image] for image in RIGHT]
    np.testing.assert_array_equal(precision(*swapped), np.zeros((2, 10)))
    np.testing.assert_allclose(precision(RIGHT[0], [])[0], 51 / 101)  # recalls from 0 to 1/2 of 101
    np.testing.assert_array_equal(precision(RIGHT[0], [])[1], 1)


def test_scores_decide_by_their_order_alone_and_images_and_boxes_in_any_order_give_the_same():
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(6)]
    found, truth = [one for one, _ in images], [real for _, real in images]
    table = average_precisions(found, truth, 3)
    monotone = [Boxes(one.corners, one.labels, one.scores**3 / 7) for one in found]
    np.testing.assert_array_equal(average_precisions(monotone, truth, 3), table)
    order = rng.permutation(6)
    np.testing.assert_array_equal(average_precisions([found[i] for i in order], [truth[i] for i in order], 3), table)
    turned = [Boxes(one.corners[::-1], one.labels[::-1], one.scores[::-1]) for one in found]
    np.testing.assert_array_equal(average_precisions(turned, truth, 3), table)


def random_image(rng):
    """Some true boxes, and predictions near them with distinct scores."""
    corners = rng.uniform(0, 60, (rng.integers(0, 6), 2))
    real = Boxes(np.concatenate([corners, corners + rng.uniform(8, 30, corners.shape)], axis=1),
                 rng.integers(0, 3, len(corners)))  # fmt: skip
    near = np.repeat(real.corners, 2, axis=0) + rng.normal(0, 2, (2 * len(corners), 4))
    labels = np.where(rng.random(len(near)) < 0.8, np.repeat(real.labels, 2), rng.integers(0, 3, len(near)))
    return Boxes(near, labels, rng.permutation(10_000)[: len(near)] / 10_000), real


def test_average_precision_is_that_of_pycocotools():
    coco, evaluation = peer("pycocotools.coco"), peer("pycocotools.cocoeval")
    rng = np.random.default_rng(3)
    images = [random_image(rng) for _ in range(25)]
    truth, found = [], []
    for number, (guess, real) in enumerate(images, 1):
        for (left, top, right, bottom), label in zip(real.corners, real.labels, strict=True):
            box, area = [left, top, right - left, bottom - top], (right - left) * (bottom - top)
            truth.append({"id": len(truth) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": box,
                          "area": area, "iscrowd": 0})  # fmt: skip
        for (left, top, right, bottom), label, score in zip(guess.corners, guess.labels, guess.scores, strict=True):
            box = [left, top, right - left, bottom - top]
            found.append({"image_id": number, "category_id": int(label) + 1, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = {"images": [{"id": i + 1} for i in range(25)], "annotations": truth,
                             "categories": [{"id": i + 1} for i in range(3)]}  # fmt: skip
        reference.createIndex()
        judge = evaluation.COCOeval(reference, reference.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][:, :, :, 0, 2].mean(axis=1).T  # all areas, 100 boxes: (classes, thresholds)
    table = average_precisions([one for one, _ in images], [real for _, real in images], 3)
    np.testing.assert_allclose(table, expected, atol=1e-12)
    assert 0.1 < table.mean() < 0.9


def test_the_iou_of_boxes_that_can_be_counted():
    x = np.array([[0, 0, 2, 2], [0, 0, 0, 0]])
    y = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 0, 0]])
    np.testing.assert_allclose(iou_of_all(x, y), [[1, 1 / 7, 0, 0], [0, 0, 0, 0]])


# Pixels -------------------------------------------------------------------------------------------------------------


def square(*edges, side=12):
    mask = np.zeros((1, side, side), int)
    left, top, right, bottom = edges
    mask[0, top:bottom, left:right] = 1
    return mask


def test_perfect_masks_have_every_figure_one():
    truth = square(2, 3, 9, 8)
    counts = count_pixels(truth, truth, 2, IGNORED)
    assert counts.mean_iou(True) == counts.mean_iou(False) == counts.accuracy == counts.mean_boundary_score() == 1


def test_empty_and_swapped_masks():
    truth = square(2, 2, 6, 6)
    empty = count_pixels(np.zeros_like(truth), truth, 2, IGNORED)
    assert empty.ious[1] == empty.mean_iou(False) == empty.mean_boundary_score() == 0
    assert empty.accuracy == pytest.approx(128 / 144)
    assert count_pixels(1 - truth, truth, 2, IGNORED).mean_iou(True) == 0
    nothing = count_pixels(np.zeros_like(truth), np.zeros_like(truth), 2, IGNORED)
    assert np.isnan(nothing.ious[1])
    assert nothing.mean_iou(False) == 0
    assert nothing.mean_iou(True) == 1


def test_a_shifted_mask_loses_overlap_but_its_boundary_only_beyond_the_tolerance():
    truth = square(2, 2, 8, 8)
    for shift, score in ((1, 1.0), (2, None)):
        counts = count_pixels(square(2 + shift, 2, 8 + shift, 8), truth, 2, IGNORED)
        assert counts.ious[1] == pytest.approx((6 - shift) / (6 + shift))
        assert (counts.boundary_scores[1] == score) == (score is not None)
    assert count_pixels(square(9, 9, 11, 11), truth, 2, IGNORED).boundary_scores[1] == 0


def test_ignored_pixels_count_nowhere():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 3, (2, 9, 9)), rng.integers(0, 3, (2, 9, 9))
    hidden = rng.random(truth.shape) < 0.3
    masked = np.where(hidden, IGNORED, truth)
    one, other = (count_pixels(np.where(hidden, value, guess), masked, 3, IGNORED) for value in (0, 2))
    np.testing.assert_array_equal(one.confusion, other.confusion)
    assert one.confusion.sum() == (~hidden).sum()
    expected = [
        ((guess == k) & (truth == k) & ~hidden).sum() / (((guess == k) | (truth == k)) & ~hidden).sum()
        for k in range(3)
    ]
    np.testing.assert_allclose(one.ious, expected)


def test_batches_and_their_order_change_no_figure():
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, 4, (6, 8, 8)), rng.integers(0, 4, (6, 8, 8))
    whole = count_pixels(guess, truth, 4, IGNORED)
    order = rng.permutation(6)
    parts = [count_pixels(guess[part], truth[part], 4, IGNORED) for part in (order[:2], order[2:])]
    for name in ("confusion", "boundaries"):
        np.testing.assert_array_equal(sum(getattr(part, name) for part in parts), getattr(whole, name))
    renamed = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(count_pixels(renamed[guess], renamed[truth], 4, IGNORED).ious[renamed], whole.ious)
