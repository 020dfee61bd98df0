"""Runs that learn from a trained model beside the labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import Watch, isolate, sha256, tiny_recipe

import tinyvit as tv
from tinyvit.errors import CheckpointError, RecipeError
from tinyvit.run.folder import RunError, load_run
from tinyvit.run.loop import resume, train
from tinyvit.run.signals import Interrupted
from tinyvit.run.state import Training

KEYS = ("task.teacher=runs/teacher", "limit=240")


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tv.models.ViT:
    """A trained model; the test works in a temporary folder."""
    isolate(tmp_path, monkeypatch)
    return load_run(train(tiny_recipe("dim=16", "limit=240", "epochs=1"), "teacher").folder).model  # type: ignore[return-value]


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("how", ["hard", "soft"])
def test_the_loss_is_that_of_the_papers(teacher: tv.models.ViT, how: str, distilled: bool) -> None:
    keys = (f"distill={how}", "distill_weight=0.3", *(("distill_temperature=2",) if how == "soft" else ()))
    form = ("distilled=true", "pool=cls") if distilled else ()
    training = Training(tiny_recipe(*KEYS, *keys, *form))
    model, batch = training.model, next(training.groups())[0]
    assert isinstance(model, tv.models.ViT)
    loss = training.task.loss(model, training.task.with_draws(model, batch)).item()
    z = teacher(batch.images).numpy().astype(np.float64)
    if distilled:
        tokens = model.forward_features(batch.images)
        own, learned = (head(tokens[:, i]).numpy() for i, head in enumerate((model.head, model.head_dist)))
        np.testing.assert_allclose((own + learned) / 2, model(batch.images).numpy(), atol=1e-5)
    else:
        own = learned = model(batch.images).numpy()
    rows = np.arange(len(z))
    of_labels = -log_softmax(own)[rows, batch.labels].sum()
    if how == "hard":
        of_teacher = -log_softmax(learned)[rows, z.argmax(axis=1)].sum()
    else:
        p, q = log_softmax(z / 2), log_softmax(learned / 2)
        of_teacher = 4 * (np.exp(p) * (p - q)).sum()
    assert loss == pytest.approx(0.7 * of_labels + 0.3 * of_teacher, rel=1e-5)


def test_the_teacher_stays_as_it_is_and_a_student_comes_near_it(teacher: tv.models.ViT) -> None:
    before = teacher.state_dict()
    recipe = tiny_recipe(*KEYS, "distill=soft", "distill_weight=1", "epochs=12", "dim=16", "lr=0.02", "batch_size=80")
    training = Training(recipe)
    losses = [0.0, 0.0]
    for epoch in range(recipe.train.epochs):
        for group in training.groups():
            training.step(group)
        losses[epoch > 0] = training.position.loss_sum / training.position.images
        training.position.finish_epoch({})
    assert losses[1] < 0.5 * losses[0]
    taught = training.task.teacher  # type: ignore[attr-defined]
    for name, value in taught.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_distilled_run_resumes_to_the_same_bits(precision: str, teacher: tv.models.ViT) -> None:
    recipe = tiny_recipe(*KEYS, "distill=soft", f"precision={precision}", "batch_size=80", "shift=1", "mixup=0.2")

    def stop(training: Training, position: object) -> None:
        if training.position.step == 3:
            raise KeyboardInterrupt

    whole = train(recipe, "whole").folder
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(recipe.override(["checkpoint_minutes=1e-9"]), "stopped", display=Watch(stop))
    folder = Path("runs/stopped")
    resume(folder)
    assert sha256(folder) == sha256(whole)


def test_a_teacher_with_other_weights_is_noticed(teacher: tv.models.ViT) -> None:
    folder = train(tiny_recipe(*KEYS, "epochs=1"), "student").folder
    state = tv.load("runs/teacher/model.safetensors")
    state["head.bias"] = state["head.bias"] + 1
    tv.save("runs/teacher/model.safetensors", state)
    with pytest.raises(CheckpointError, match="whose teacher, runs/teacher, had other weights"):
        resume(folder)


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        (("task.teacher=runs/none",), RunError, "task.teacher: there is no run 'runs/none'"),
        (("distill=soft",), RecipeError, "task.distill is 'soft', which .* without task.teacher does not use"),
        (("distill_weight=0.1",), RecipeError, "task.distill_weight is 0.1, which .* without task.teacher"),
        (
            (*KEYS, "distill_temperature=2"),
            RecipeError,
            r"task.distill_temperature is 2.0, .* with task.distill = 'hard'",
        ),
        ((*KEYS, "normalize=0 / 1"), RecipeError, "task.teacher .* other data: the images were normalized"),
        ((*KEYS, "name=folder:pictures"), RecipeError, "task.teacher .* other data: .*28 x 28"),
    ],
)
def test_what_cannot_teach_is_refused(
    keys: tuple[str, ...], kind: type[Exception], message: str, teacher: tv.models.ViT
) -> None:
    for i in range(60):
        path = Path("pictures", str(i % 10), f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), i).save(path)
    with pytest.raises(kind, match=message):
        train(tiny_recipe(*keys), "student")
    assert not Path("runs/student").exists()
