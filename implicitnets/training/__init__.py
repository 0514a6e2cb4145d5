"""Ways to train models, implicit or not. A method is a frozen value; ``trainer`` binds it to a model."""

from __future__ import annotations

import re

from .. import values
from ..matching import Matching, match_states
from ..rows import RowFit, match_rows
from .backprop import Backprop
from .fadjoint import FAdjoint, FAdjointVariables, FPropagation
from .fenchel_young import FenchelYoung
from .implicit_sgd import ImplicitSGD
from .lifted import Lifted, LiftedEnergy
from .method import GradientTrainer, Loss, Method, Trainer, Unsupported
from .optim import ProxAdam, ProxAdamW, ProxSGD, penalize
from .proximal import Projection, ProxProp, ProxPropHandle, Sweep, proxprop
from .robust import SAM, Adversarial, Certified, Lipschitz, certified_loss, lipschitz_bound, worst_outputs
from .semi_implicit import SemiImplicit
from .sobolev import Sobolev, sobolev_loss
from .tangent import tangent

__all__ = [
    "SAM",
    "Adversarial",
    "Backprop",
    "Certified",
    "FAdjoint",
    "FAdjointVariables",
    "FPropagation",
    "FenchelYoung",
    "GradientTrainer",
    "ImplicitSGD",
    "Lifted",
    "LiftedEnergy",
    "Lipschitz",
    "Loss",
    "Matching",
    "Method",
    "Projection",
    "ProxAdam",
    "ProxAdamW",
    "ProxProp",
    "ProxPropHandle",
    "ProxSGD",
    "RowFit",
    "SemiImplicit",
    "Sobolev",
    "Sweep",
    "Trainer",
    "Unsupported",
    "certified_loss",
    "lipschitz_bound",
    "match_rows",
    "match_states",
    "parse",
    "penalize",
    "proxprop",
    "sobolev_loss",
    "tangent",
    "worst_outputs",
]

CLASSES: dict[str, type[Method]] = {
    cls.__name__: cls
    for cls in (
        *(Adversarial, Backprop, Certified, FAdjoint, ImplicitSGD, Lifted, Lipschitz, ProxProp),
        *(SAM, SemiImplicit, Sobolev),
    )
}
"""All methods by name."""


def parse(text: str) -> Method:
    """Read a method from text, its ``repr`` or a bare name: ``"backprop"``, ``"ProxProp(tau=10)"``.

    Raises:
        ValueError: If the text can't be read or names no method.
        TypeError: If an option does not exist.
    """
    if re.fullmatch(r"[A-Za-z-]+", text):  # a bare name: the literature's hyphens are not part of ours
        text = text.replace("-", "")
    method: Method = values.parse(text, CLASSES, what="method")
    return method
