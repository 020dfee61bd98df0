"""The optimizer of a run, and which keys of its recipe belong to which optimizer or schedule."""

from typing import Any

from ..errors import RecipeError
from ..nn import Module
from ..optim import SGD, Adam, AdamW, Lion, Muon, Optimizer, decay_groups, muon_groups
from ..recipe import Recipe, Train
from ..tasks import recipe_error
from ..tasks.options import DEFAULTS
from .groups import parameter_groups

_BETAS = ("beta1", "beta2")
_OF_OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adam": _BETAS,
    "adamw": _BETAS,
    "sgd": ("momentum", "nesterov"),
    "lion": ("beta1", "lion_beta2"),
    "muon": (*_BETAS, "muon_momentum"),
}
_OF_SCHEDULES = {"cooldown": ("cooldown",)}


def check_optimizer(settings: Train) -> None:
    """Raise RecipeError if the recipe sets an option that its optimizer, or its schedule, does not have."""
    for what, table in (("optimizer", _OF_OPTIMIZERS), ("schedule", _OF_SCHEDULES)):
        chosen = getattr(settings, what)
        for key in dict.fromkeys(key for keys in table.values() for key in keys):
            value, default = getattr(settings, key), DEFAULTS[f"train.{key}"]
            if value != default and key not in table.get(chosen, ()):
                raise RecipeError(
                    f"train.{key} is {value}, which {chosen} does not use; leave it at {default}, or choose another "
                    f"train.{what}"
                )


def new_optimizer(recipe: Recipe, model: Module) -> tuple[Optimizer, list[float]]:
    """Return the optimizer of the parameters that are trained, and the factor of the learning rate of each group."""
    settings = recipe.train
    split = muon_groups if settings.optimizer == "muon" else decay_groups
    groups, factors = parameter_groups(model, settings.weight_decay, settings.layer_decay, split)
    try:
        return _optimizer_of(settings, groups), factors
    except ValueError as error:
        raise recipe_error(settings, error) from error


def _optimizer_of(settings: Train, groups: list[dict[str, Any]]) -> Optimizer:
    lr, betas = settings.lr, (settings.beta1, settings.beta2)
    if settings.optimizer == "sgd":
        return SGD(groups, lr, settings.momentum, nesterov=settings.nesterov)
    if settings.optimizer == "lion":
        return Lion(groups, lr, (settings.beta1, settings.lion_beta2))
    if settings.optimizer == "muon":
        return Muon(groups, lr, settings.muon_momentum, betas=betas)
    return Adam(groups, lr, betas) if settings.optimizer == "adam" else AdamW(groups, lr, betas)
