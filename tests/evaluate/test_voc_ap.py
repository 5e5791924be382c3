"""Average precision: what must be true of it, a plain reading of the VOC devkit, detectron2's own, and resampling."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from evaluate.ap import average_precision, mean_over_classes
from evaluate.voc_ap import THRESHOLDS, Detections, GroundTruth, Points, Rule, area, matches
from zoo.errors import DataError, NonFiniteError
from zoo.files import ROOT

BOX = (11.0, 11.0, 30.0, 40.0)
FAR = (111.0, 111.0, 130.0, 140.0)
POINTS: tuple[Points, ...] = get_args(Points)
RULES: tuple[Rule, ...] = get_args(Rule)
Row = tuple[int, int, float, tuple[float, float, float, float]]  # image, label, score (difficult for truth), box


def found(*rows: Row) -> Detections:
    image, label, score, box = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Detections(
        image=np.array(image, np.int64),
        label=np.array(label, np.int64),
        score=np.array(score, np.float32),
        box=np.array(box, np.float32).reshape(-1, 4),
    )


def annotated(*rows: Row) -> GroundTruth:
    same = found(*rows)
    return GroundTruth(image=same.image, label=same.label, box=same.box, difficult=same.score.astype(bool))


def ap_of(
    detections: Detections,
    truth: GroundTruth,
    *,
    points: Points = "every",
    rule: Rule = "above",
    num_classes: int = 1,
    thresholds: tuple[float, ...] = (0.5,),
    counts: np.ndarray | None = None,
) -> np.ndarray:
    images = 1 + max(detections.image.max(initial=0), truth.image.max(initial=0)) if counts is None else counts.shape[1]
    matched = matches(detections, truth, num_images=images, num_classes=num_classes, thresholds=thresholds, rule=rule)
    return average_precision(matched, area(points), counts)


def scene(
    seed: int, *, num_images: int = 40, num_classes: int = 3, ties: bool = False
) -> tuple[Detections, GroundTruth]:
    """Boxes on whole pixels, some difficult; detections near them, twice, beside them, of another class, and stray."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        low = rng.integers(1, 60, (count, 2))
        return np.concatenate([low, low + rng.integers(8, 40, (count, 2))], axis=1).astype(np.float32)

    total = 5 * num_images
    truth = GroundTruth(
        image=rng.integers(0, num_images, total),
        label=rng.integers(0, num_classes, total),
        box=boxes(total),
        difficult=rng.random(total) < 0.2,
    )
    near = rng.integers(0, total, 4 * total)  # several for a box, none for others
    label = np.where(rng.random(4 * total) < 0.9, truth.label[near], rng.integers(0, num_classes, 4 * total))
    count = 5 * total
    score = rng.integers(0, 20, count) / 20 if ties else rng.permutation(count) / count
    return Detections(
        image=np.concatenate([truth.image[near], rng.integers(0, num_images, total)]),
        label=np.concatenate([label, rng.integers(0, num_classes, total)]),
        score=score.astype(np.float32),
        box=np.concatenate([truth.box[near] + rng.normal(0, 2, (4 * total, 4)).astype(np.float32), boxes(total)]),
    ), truth


def devkit_ap(
    detections: Detections, truth: GroundTruth, label: int, threshold: float, rule: Rule, points: Points
) -> float:
    """VOCevaldet.m in plain loops: one class, one threshold, in percent."""
    rows = [row for row in range(len(detections.label)) if detections.label[row] == label]
    rows.sort(key=lambda row: (-detections.score[row], detections.image[row], row))
    taken: set[int] = set()
    curve: list[tuple[float, float]] = []  # recall, precision
    positives = sum(1 for k in range(len(truth.label)) if truth.label[k] == label and not truth.difficult[k])
    right = wrong = 0
    for row in rows:
        highest, box = -1.0, -1
        for k in range(len(truth.label)):
            if truth.image[k] == detections.image[row] and truth.label[k] == label:
                overlap = plain_iou(detections.box[row].tolist(), truth.box[k].tolist())
                if overlap > highest:
                    highest, box = overlap, k
        if not (highest > threshold if rule == "above" else highest >= threshold):
            wrong += 1
        elif not truth.difficult[box]:
            right += box not in taken
            wrong += box in taken
            taken.add(box)
        curve.append((right / positives, right / (right + wrong) if right + wrong else 0.0))
    if points == "eleven":
        tops = [max((p for r, p in curve if r >= t), default=0.0) for t in np.arange(0.0, 1.1, 0.1)]
        return 100 * sum(tops) / 11
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[place:])
        before = recall
    return 100 * area


def plain_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = width * height if width > 0 and height > 0 else 0.0
    return common / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - common)


@pytest.mark.parametrize("points", POINTS)
def test_perfect_detections_give_100_none_0_and_shuffled_labels_little(points: Points) -> None:
    _, truth = scene(0)
    perfect = Detections(image=truth.image, label=truth.label, score=np.ones(200, np.float32), box=truth.box)
    shuffled = Detections(image=truth.image, label=(truth.label + 1) % 3, score=np.ones(200, np.float32), box=truth.box)
    np.testing.assert_allclose(ap_of(perfect, truth, points=points, num_classes=3, thresholds=THRESHOLDS), 100.0)
    assert (ap_of(found(), truth, points=points, num_classes=3) == 0.0).all()
    assert ap_of(shuffled, truth, points=points, num_classes=3).max() < 15.0


def test_a_second_detection_of_a_box_is_wrong_and_the_higher_score_is_the_first() -> None:
    truth = annotated((0, 0, 0, BOX), (1, 0, 0, BOX))
    twice = found((0, 0, 0.7, BOX), (0, 0, 0.8, BOX), (1, 0, 0.6, BOX))
    (matched,) = matches(twice, truth, num_images=2, num_classes=1, thresholds=(0.5,), rule="above")
    assert matched.image.tolist() == [0, 0, 1]
    assert matched.outcome.tolist() == [[1, 0, 1]]
    np.testing.assert_allclose(ap_of(twice, truth), 100 * (1 / 2 + 1 / 2 * 2 / 3))


def test_a_difficult_box_is_neither_missed_nor_found() -> None:
    truth = annotated((0, 0, 0, BOX), (0, 0, 1, FAR))
    found_both = found((0, 0, 0.9, FAR), (0, 0, 0.8, FAR), (0, 0, 0.7, BOX))
    (matched,) = matches(found_both, truth, num_images=1, num_classes=1, thresholds=(0.5,), rule="above")
    assert matched.outcome.tolist() == [[-1, -1, 1]]  # however often it is found
    np.testing.assert_allclose(ap_of(found_both, truth), 100.0)
    np.testing.assert_allclose(ap_of(found((0, 0, 0.7, BOX)), truth), 100.0)


def test_detections_in_an_image_without_boxes_are_wrong_beyond_the_last_annotated_one_too() -> None:
    truth = annotated((1, 0, 0, BOX))
    strays = found((0, 0, 0.9, BOX), (1, 0, 0.8, BOX), (7, 0, 0.95, BOX))
    np.testing.assert_allclose(ap_of(strays, truth), 100 / 3)


def test_a_class_without_boxes_is_nan_and_left_out_of_the_mean() -> None:
    truth = annotated((0, 0, 0, BOX), (0, 2, 1, BOX))  # class 2 has a difficult box only
    ap = ap_of(found((0, 0, 0.9, BOX), (0, 1, 0.9, BOX), (0, 2, 0.9, BOX)), truth, num_classes=3)
    assert np.isnan(ap).tolist() == [[False, True, True]]
    np.testing.assert_allclose(mean_over_classes(ap), [100.0])


def test_without_any_box_the_mean_is_0() -> None:
    for detections in (found(), found((0, 0, 0.9, BOX))):
        for counts in (None, np.ones((5, 3), np.uint16)):
            ap = ap_of(detections, annotated(), num_classes=2, counts=counts)
            assert np.isnan(ap).all() and (mean_over_classes(ap) == 0.0).all()
            assert ap.shape == ((1, 2) if counts is None else (5, 1, 2))


@pytest.mark.parametrize(("rule", "expected"), [("above", 0.0), ("at_least", 100.0)])
def test_an_iou_of_exactly_the_threshold_is_where_the_rules_differ(rule: Rule, expected: float) -> None:
    truth = annotated((0, 0, 0, (1, 1, 10, 10)))
    half = found((0, 0, 0.9, (1, 1, 10, 5)))  # 50 of 100 pixels
    np.testing.assert_allclose(ap_of(half, truth, rule=rule), expected)


def test_thresholds_do_not_influence_each_other() -> None:
    """At .75 the better-scored, worse-placed detection does not take the box."""
    truth = annotated((0, 0, 0, (1, 1, 10, 10)))
    both = found((0, 0, 0.9, (1, 1, 10, 6)), (0, 0, 0.8, (1, 1, 10, 9)))
    (matched,) = matches(both, truth, num_images=1, num_classes=1, thresholds=(0.5, 0.75), rule="above")
    assert matched.outcome.tolist() == [[1, 0], [0, 1]]


def test_equal_scores_are_taken_by_image_then_in_the_order_given() -> None:
    truth = annotated((2, 0, 0, BOX))
    tied = found((2, 0, 0.5, BOX), (1, 0, 0.5, BOX), (2, 0, 0.5, FAR), (1, 0, 0.5, FAR))
    (matched,) = matches(tied, truth, num_images=3, num_classes=1, thresholds=(0.5,), rule="above")
    assert matched.image.tolist() == [1, 1, 2, 2]
    assert matched.outcome.tolist() == [[0, 0, 1, 0]]


def test_an_inside_out_box_overlaps_nothing() -> None:
    truth = annotated((0, 0, 0, (1, 1, 10, 10)))
    assert (ap_of(found((0, 0, 0.9, (10, 1, -1, 10)), (0, 0, 0.8, (20, 1, 9, 10))), truth) == 0.0).all()


@pytest.mark.parametrize("label", [-1, 1])
def test_a_foreign_label_is_refused(label: int) -> None:
    rows = (0, 0, 0, BOX), (0, label, 0, BOX)
    with pytest.raises(DataError, match=rf"detections: expected labels in 0…0, found {label} \(1 of 2\)"):
        ap_of(found(*rows), annotated())
    with pytest.raises(DataError, match=rf"ground truth: expected labels in 0…0, found {label} \(1 of 2\)"):
        ap_of(found(), annotated(*rows))


def test_a_score_or_box_that_is_not_finite_is_refused() -> None:
    for bad in ((3, 0, np.nan, BOX), (3, 0, 0.9, (1.0, 1.0, np.inf, 2.0))):
        with pytest.raises(NonFiniteError, match=r"detection 1 \(image 3\) .* NaN or infinite \(1 of 2\)"):
            ap_of(found((0, 0, 0.9, BOX), bad), annotated())


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ties", [False, True])
def test_it_equals_the_devkit_in_plain_loops(points: Points, rule: Rule, ties: bool) -> None:
    for seed in range(3):
        detections, truth = scene(seed, num_images=12, ties=ties)
        ap = ap_of(detections, truth, points=points, rule=rule, num_classes=3, thresholds=(0.3, 0.5, 0.75))
        expected = [
            [devkit_ap(detections, truth, label, threshold, rule, points) for label in range(3)]
            for threshold in (0.3, 0.5, 0.75)
        ]
        np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-9)
        assert 5 < ap.mean() < 95


def mmdets_ap(detections: Detections, truth: GroundTruth, label: int, threshold: float) -> float:
    """mmdet's matching (tpfp_default) and '11points' as its documentation describes them: loops, one class, percent.

    Image by image, boxes on both sides 0-based; the boxes that count come first, then the difficult ones.
    """
    verdicts: list[tuple[float, int, int]] = []  # score, right, wrong: of all images
    positives = 0
    for image in range(int(max(detections.image.max(), truth.image.max())) + 1):
        mine = [k for k in range(len(truth.label)) if truth.image[k] == image and truth.label[k] == label]
        counted = [truth.box[k] - 1 for k in mine if not truth.difficult[k]]
        boxes = counted + [truth.box[k] - 1 for k in mine if truth.difficult[k]]
        positives += len(counted)
        rows = [k for k in range(len(detections.label)) if detections.image[k] == image]
        rows = [k for k in rows if detections.label[k] == label]
        covered = [False] * len(boxes)
        for row in sorted(rows, key=lambda row: -detections.score[row]):
            overlaps = [plain_iou((detections.box[row] - 1).tolist(), box.tolist()) for box in boxes]
            best = int(np.argmax(overlaps)) if overlaps else -1
            right = wrong = 0
            if best < 0 or overlaps[best] < threshold:
                wrong = 1
            elif best < len(counted):
                right, wrong = int(not covered[best]), int(covered[best])
                covered[best] = True
            verdicts.append((float(detections.score[row]), right, wrong))
    verdicts.sort(key=lambda verdict: -verdict[0])
    total, curve, right, wrong = 0.0, [], 0, 0
    for _, is_right, is_wrong in verdicts:
        right, wrong = right + is_right, wrong + is_wrong
        curve.append((right / positives, right / max(right + wrong, np.finfo(np.float32).eps)))
    for least in np.arange(0, 1 + 1e-3, 0.1):
        total += max((precision for recall, precision in curve if recall >= least), default=0.0)
    return 100 * total / 11


def test_mmdets_matching_in_plain_loops() -> None:
    """On whole pixels, so that IoUs are exactly the threshold, and boxes overlapped equally, many times."""
    differ = 0
    for seed in range(4):
        detections, truth = scene(seed, num_images=10)
        corner = np.random.default_rng(seed).integers(1, 4, (len(truth.label), 2)).astype(np.float32)
        boxes = np.concatenate([corner, corner + 7], axis=1)  # 8 x 8, shifted by up to 2 pixels
        truth = GroundTruth(image=truth.image, label=truth.label, box=boxes, difficult=truth.difficult)
        rows = np.random.default_rng(seed + 9).integers(0, 6, (len(detections.label), 2)).astype(np.float32)
        box = np.concatenate([rows, rows + 7], axis=1)
        detections = Detections(image=detections.image, label=detections.label, score=detections.score, box=box)
        ours = ap_of(detections, truth, points="eleven", rule="at_least", num_classes=3)[0]
        np.testing.assert_allclose(ours, [mmdets_ap(detections, truth, label, 0.5) for label in range(3)], atol=1e-9)
        differ += int((ours != ap_of(detections, truth, points="eleven", rule="above", num_classes=3)[0]).any())
    assert differ == 4


def test_of_equally_overlapped_boxes_mmdet_prefers_one_that_is_not_difficult() -> None:
    truth = annotated((0, 0, 1, (1, 1, 10, 10)), (0, 0, 0, (5, 1, 14, 10)))
    between = found((0, 0, 0.9, (3, 1, 12, 10)))  # 8 of 12 columns are common with each
    outcomes = {
        rule: matches(between, truth, num_images=1, num_classes=1, thresholds=(0.5,), rule=rule)[0].outcome.tolist()
        for rule in RULES
    }
    assert outcomes == {"above": [[-1]], "at_least": [[1]]}


@pytest.mark.parametrize("points", POINTS)
def test_drawing_every_image_equally_often_changes_nothing(points: Points) -> None:
    detections, truth = scene(3, ties=True)
    once = ap_of(detections, truth, points=points, num_classes=3, thresholds=THRESHOLDS)
    counts = np.repeat(np.array([[1], [2], [7]], np.uint16), 40, axis=1)
    drawn = ap_of(detections, truth, points=points, num_classes=3, thresholds=THRESHOLDS, counts=counts)
    np.testing.assert_array_equal(drawn, np.stack([once] * 3))


@pytest.mark.parametrize("points", POINTS)
def test_an_image_drawn_n_times_is_a_test_set_with_n_copies_of_it(
    points: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ties copies stand side by side in the ranking: for any counts, 0 too, the AP is the same."""
    monkeypatch.setattr("evaluate.ap.BLOCK_CELLS", 1000)  # some replicates at a time
    detections, truth = scene(4)
    counts = np.random.default_rng(0).integers(0, 4, (6, 40)).astype(np.uint16)
    counts[0] = 0
    ap = ap_of(detections, truth, points=points, num_classes=3, thresholds=THRESHOLDS, counts=counts)
    assert np.isnan(ap[0]).all()
    for row in range(1, 6):
        copied, copied_truth = copies(detections, truth, counts[row])
        expected = ap_of(copied, copied_truth, points=points, num_classes=3, thresholds=THRESHOLDS)
        np.testing.assert_allclose(ap[row], expected, rtol=0, atol=1e-9)


def copies(detections: Detections, truth: GroundTruth, counts: np.ndarray) -> tuple[Detections, GroundTruth]:
    """Every image as often as `counts` says, each copy an image of its own."""

    def rows(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows the copies have, and their image numbers."""
        taken = [(row, 100 * old + copy) for row, old in enumerate(image) for copy in range(counts[old])]
        return np.array([row for row, _ in taken]), np.array([new for _, new in taken])

    which, image = rows(detections.image)
    copied = Detections(
        image=image, label=detections.label[which], score=detections.score[which], box=detections.box[which]
    )
    which, image = rows(truth.image)
    return copied, GroundTruth(
        image=image, label=truth.label[which], box=truth.box[which], difficult=truth.difficult[which]
    )


def test_a_class_may_be_absent_from_some_replicates_only() -> None:
    truth = annotated((0, 0, 0, BOX), (1, 1, 0, BOX))
    both = found((0, 0, 0.9, BOX), (1, 1, 0.9, FAR))
    ap = ap_of(both, truth, num_classes=2, counts=np.array([[2, 0], [1, 1], [0, 2]], np.uint16))
    np.testing.assert_allclose(ap[:, 0], [[100, np.nan], [100, 0], [np.nan, 0]])
    np.testing.assert_allclose(mean_over_classes(ap)[:, 0], [100, 50, 0])


DETECTRON2 = """
import json, sys
import numpy as np
from engines.compatibility import prepare_detectron2
prepare_detectron2()
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
folder, num_classes, percents = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
ap = {
    points: [
        [
            100 * voc_eval(
                folder + "/found_{}.txt", folder + "/{}.xml", folder + "/names.txt", f"class{label}",
                ovthresh=percent / 100.0, use_07_metric=points == "eleven",
            )[2]
            for label in range(num_classes)
        ]
        for percent in percents
    ]
    for points in ("eleven", "every")
}
print(json.dumps(ap))
"""


@pytest.mark.slow
def test_it_equals_detectron2s_own_evaluation(tmp_path: Path) -> None:
    """In a child process: its imports patch numpy and warn."""
    detections, truth = scene(5, num_images=60, num_classes=4)
    write_for_detectron2(tmp_path, detections, truth, num_images=60, num_classes=4)
    percents = json.dumps([round(100 * threshold) for threshold in THRESHOLDS])
    child = subprocess.run(
        [sys.executable, "-c", DETECTRON2, str(tmp_path), "4", percents],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    theirs = json.loads(child.stdout.splitlines()[-1])
    for points in POINTS:
        ours = ap_of(detections, truth, points=points, num_classes=4, thresholds=THRESHOLDS)
        np.testing.assert_allclose(ours, theirs[points], rtol=0, atol=1e-6)
        assert ours.min() < 10 and ours.max() > 50


def write_for_detectron2(
    folder: Path, detections: Detections, truth: GroundTruth, *, num_images: int, num_classes: int
) -> None:
    """An XML file an image, a text file of detections a class, and the list of image names."""
    (folder / "names.txt").write_text("".join(f"image{image}\n" for image in range(num_images)))
    for image in range(num_images):
        objects = "".join(
            f"<object><name>class{truth.label[k]}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(truth.difficult[k])}</difficult><bndbox>{corners(truth.box[k])}</bndbox></object>"
            for k in np.flatnonzero(truth.image == image)
        )
        (folder / f"image{image}.xml").write_text(f"<annotation>{objects}</annotation>")
    for label in range(num_classes):
        lines = [
            " ".join([f"image{detections.image[row]}", repr(detections.score[row].item()), *map(str, box.tolist())])
            for row, box in enumerate(detections.box)
            if detections.label[row] == label
        ]
        (folder / f"found_class{label}.txt").write_text("\n".join(lines))


def corners(box: np.ndarray) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{name}>{int(value)}</{name}>" for name, value in zip(names, box, strict=True))
