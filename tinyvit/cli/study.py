"""`tinyvit study`."""

import click

from ..backend.terminal import show
from .group import commands


@commands.command()
@click.argument("run", required=False)
@click.option("--image", metavar="FILE", help="The image.  [default: the test image with the least certain class]")
@click.option("--label", metavar="CLASS", help="The target of the loss.  [default: the label, or the predicted class]")
@click.option("--out", metavar="FILE", help="The page to write.  [default: study.html, study-softmax.html ...]")
@click.option("--text", is_flag=True, help="Print the steps instead of writing a page.")
@click.option("--operation", metavar="NAME", help="Print all steps of the operations whose names contain NAME.")
@click.option("--plant", metavar="OPERATION", help="Plant a fault in a gradient rule, to be found: attention ... any.")
@click.option("--exercise", metavar="N", type=int, help="Write exercise number N: a page with a fault and no answer.")
@click.option("--answer", metavar="N", type=int, help="Check an answer to exercise N: --answer N OPERATION.")
def study(
    run: str | None,
    image: str | None,
    label: str | None,
    out: str | None,
    text: bool,
    operation: str | None,
    plant: str | None,
    exercise: int | None,
    answer: int | None,
) -> None:
    """Show the gradients of a model, step by step.

    Writes one HTML file that works without a network. It shows every operation of a forward and a backward pass, with
    its formula, its arrays, the steps of its gradient rule and a numeric check.

    RUN is a run folder, the name of a recipe whose trained weights come with the package, or the name of an operation
    (softmax, layer_norm) to study alone.

    \b
    tinyvit study
    tinyvit study runs/mnist --image seven.png --label 7
    tinyvit study softmax --text
    tinyvit study --operation blocks.0.attn/attention
    tinyvit study --plant any
    tinyvit study --exercise 7 --out homework.html
    tinyvit study --answer 7 blocks.0.norm1/layer_norm

    An exercise is a page of the digits on which one gradient rule is wrong; the number decides which one, and the page
    does not hold the answer. The exit status of --answer is 0 if the answer is right, and 1 if not.
    """
    if exercise is not None or answer is not None:
        from ..study.exercises import exercise_page, judged

        if text or (exercise is None) == (answer is None) or any((image, label, operation, plant)):
            raise click.UsageError("--exercise and --answer go with no other option but --out")
        if exercise is not None:
            if run is not None:
                raise click.UsageError(f"--exercise is of the digits that come with the package: leave out {run!r}")
            show(exercise_page(exercise, out))
            return
        if answer is None or run is None or out is not None:
            raise click.UsageError("give the operation whose rule is wrong: --answer N OPERATION")
        is_right, verdict = judged(answer, run)
        show(verdict)
        click.get_current_context().exit(0 if is_right else 1)
    from ..study.subject import printed, write_page

    run = "digits" if run is None else run
    if text or operation:
        show(printed(run, image, label, operation, plant))
    else:
        show(write_page(run, image, label, out, plant))


@commands.command()
@click.argument("folder", default="exercises")
def exercises(folder: str) -> None:
    """Write six exercises: files in which one function is missing, and tests.

    The gradients of softmax, layer norm and attention, a step of AdamW, a kernel in Numba, and a CUDA kernel that runs
    on the CPU. FOLDER must be new or empty; by default it is called exercises. Needs pytest to run the tests.

    \b
    tinyvit exercises
    python -m pytest exercises
    """
    from ..study.exercises import write_exercises

    show(write_exercises(folder))
