"""Implicit models as the tools of others know models: from images in [0, 1] to logits."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ...solution import ConvergenceWarning
from .victim import Gradient, Settled

__all__ = ["Attackable"]


class Attackable(nn.Module):
    """A model as torchattacks, Foolbox and AutoAttack expect one: images in [0, 1], logits of the dtype of the images.

    Inside is a copy in eval mode and in float64, its equilibria solved to the precision of that and differentiated by
    the implicit function theorem, whatever the settings of the model, so that gradients are not masked by a loose
    solver or an approximate backward.

    Examples:
        >>> from implicitnets.models import ImplicitModel
        >>> victim = Attackable(ImplicitModel(inputs=64, states=8, outputs=10), (1, 8, 8), flat=True)
        >>> victim(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Attributes:
        unconverged: For how many inputs so far an equilibrium was not found.

    Args:
        model: The classifier. It stays as it is.
        input_shape: Shape of one image, (channels, height, width).
        bounds: The values of the model's inputs that the pixels 0 and 1 stand for.
        flat: Whether the model takes flattened images, (batch, pixels).
        gradient: As for ``attack``.
        dtype: Of the copy.

    Raises:
        ValueError: If bounds are no interval. When called, if images are of another shape, not of floating point or
            outside of [0, 1]; if training mode is asked for; if the copy was moved to another dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        flat: bool = False,
        gradient: Gradient = "exact",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={bounds}: the first must be less than the second, e.g. (0, 1)")
        self.input_shape, self.bounds, self.unconverged = tuple(input_shape), bounds, 0
        inner = (torch.Size(input_shape).numel(),) if flat else self.input_shape
        self.settled = Settled(model, inner, dtype, gradient)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes).

        Raises:
            ValueError: As described at the class.

        Warns:
            ConvergenceWarning: If an equilibrium was not found.
        """
        self._check(images)
        low, high = self.bounds
        logits, found = self.settled((low + (high - low) * images.to(self.settled.dtype)).flatten(1))
        missed = int((~found).sum())
        if missed:
            self.unconverged += missed
            warnings.warn(
                f"the equilibrium was not found for {missed} of {len(images)} images: what is said of them means "
                "little. attack() counts such inputs as unknown",
                ConvergenceWarning,
                stacklevel=2,
            )
        result: Tensor = logits.to(images.dtype)
        return result

    def train(self, mode: bool = True) -> Attackable:
        """Refused: what is attacked is the model as it is used.

        Raises:
            ValueError: If mode is True.
        """
        if mode:
            raise ValueError("what is attacked is in eval mode, and can't be trained: train the model it was made of")
        return super().train(False)

    def _check(self, images: Tensor) -> None:
        """Check that these are images that the model is for.

        Raises:
            ValueError: If not.
        """
        if images.shape[1:] != self.input_shape or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: they must be of floating point, "
                f"(batch, {', '.join(map(str, self.input_shape))})"
            )
        if len(images) and not bool(((images >= -1e-4) & (images <= 1 + 1e-4)).all()):
            low, high = float(images.min()), float(images.max())
            raise ValueError(
                f"images have values from {low:g} to {high:g}, outside of [0, 1]: scale them, and say what the model "
                "takes by bounds=(low, high)"
            )
        own = {tensor.dtype for tensor in self.settled.parameters() if tensor.is_floating_point()}
        if own - {self.settled.dtype}:
            raise ValueError(f"the copy was moved to {own}: say dtype= when it is made, so that its tolerance fits")
