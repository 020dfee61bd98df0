"""The group of all commands, and the options that several of them share."""

from pathlib import Path

import click

from .. import __version__


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tinyvit %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Train and study small Vision Transformers with nothing but NumPy.

    \b
    tinyvit train                      train on the digits in the package
    tinyvit evaluate runs/digits       measure the accuracy of each class
    tinyvit predict runs/digits a.png  name the digit in a picture
    tinyvit data sample caption        write pictures to try a trained model on
    tinyvit caption caption a.png      describe one, without training first
    tinyvit study                      show every gradient, step by step

    With TINYVIT_TRACEBACK=1 in the environment, errors show their traceback.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _use_device(context: click.Context, parameter: click.Parameter, name: str) -> None:
    from ..backend import set_default_device

    try:
        set_default_device(name)
    except (ValueError, RuntimeError) as error:
        raise click.BadParameter(str(error)) from error


device_option = click.option(
    "--device", default="cpu", show_default=True, callback=_use_device, expose_value=False, help="Where to compute."
)


def folder(name: str) -> Path:
    if not name:  # from an empty shell variable, for example: Path("") would be the current folder
        raise click.BadParameter("it is empty; give the name of a folder.")
    return Path(name)
