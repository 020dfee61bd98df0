"""The group of all commands, and the options that several of them share."""

import shlex
from collections.abc import Sequence
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


class WithKeys(click.Command):
    """A command with the option --set, which says how to write a key of a recipe that was given in another way."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
            name = str(ctx.params.get("recipe") or "")
            threes = zip(given, given[1:], given[2:], strict=False)
            is_value = any(first == "--set" and "=" not in key and name == last for first, key, last in threes)
            if name and not Path(name).exists() and ("=" in name or is_value):
                raise click.UsageError(f"{name!r} is no recipe", ctx)
        except click.UsageError as error:
            meant = self._as_settings(given)
            if not meant:
                raise
            # Of an unknown option the message also suggests others, none of which is meant.
            said = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
            message = said.rstrip(".")
            raise click.UsageError(f"{message}; to change the recipe, write {' '.join(meant)}", ctx) from None
        return rest

    def _as_settings(self, words: Sequence[str]) -> list[str]:
        """Return what the words "--epochs", "2" or "epochs=2" mean: "--set epochs=2"."""
        from ..recipe import key_named

        own = {name for parameter in self.params for name in parameter.opts}
        found = []
        for before, word, after in zip(["", *words], words, [*words[1:], "--"], strict=False):
            name, equals, value = word.partition("=")
            key = None if name in own else key_named(name.lstrip("-"))
            is_in_order = equals if before == "--set" else not equals and not word.startswith("-")
            if key is None or is_in_order:
                continue
            if not equals:
                value = after if not after.startswith("--") else "true" if key.type is bool else "VALUE"
            found.append(f"--set {shlex.quote(f'{key.name}={value}')}")
        return found
