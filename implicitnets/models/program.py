"""The data of quadratic programs, and the linear algebra of their splitting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import invert_definite

__all__ = ["Program", "Splitting", "times"]


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """``x[i] @ matrix[i]`` for rows x (batch, n) and a matrix for each, (batch, n, m), or one for all, (n, m)."""
    return (x[:, None] @ matrix)[:, 0]


@dataclass(frozen=True, eq=False)
class Program:
    """min ½ zᵀQz + qᵀz subject to Gz ≤ h and Az = b, for a batch: vectors one a sample, matrices so or one for all."""

    Q: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor

    @staticmethod
    def of(Q: Tensor, q: Tensor, G: Tensor | None, h: Tensor | None, A: Tensor | None, b: Tensor | None) -> Program:
        """The program of these data, checked, Q made symmetric and what is missing made empty.

        Raises:
            ValueError: If a shape or dtype does not fit, only one of G and h or of A and b is given, or nothing has a
                batch axis.
        """
        if (G is None) != (h is None) or (A is None) != (b is None):
            raise ValueError("G goes with h (Gz ≤ h), and A with b (Az = b): give both or none")
        n = q.shape[-1] if q.dim() else 0
        empty = {"G": q.new_zeros(0, n), "h": q.new_zeros(0), "A": q.new_zeros(0, n), "b": q.new_zeros(0)}
        given = {"Q": Q, "q": q, "G": G, "h": h, "A": A, "b": b}
        data = {name: empty[name] if value is None else value for name, value in given.items()}
        rows = {name: data[name].shape[-2] if data[name].dim() > 1 else 0 for name in "GA"}
        wanted = {
            "Q": (n, n),
            "q": (n,),
            "G": (rows["G"], n),
            "h": (rows["G"],),
            "A": (rows["A"], n),
            "b": (rows["A"],),
        }
        sizes = set()
        for name, value in data.items():
            lead = value.dim() - len(wanted[name])
            if value.shape[lead:] != wanted[name] or lead not in (0, 1) or value.dtype != q.dtype:
                shape = ", ".join(map(str, wanted[name]))
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}: with q of {n} variables it has to "
                    f"be (batch, {shape}), or ({shape}) for all samples, of dtype {q.dtype}"
                )
            sizes |= {value.shape[0]} if lead else set()
        if len(sizes) != 1:
            found = f"batch sizes {sorted(sizes)}" if sizes else "no batch axis"
            raise ValueError(f"the data have {found}: give them one, for a single program q[None] of shape (1, {n})")
        batch = sizes.pop()
        data.update({name: data[name].expand(batch, -1) for name in "qhb"}, Q=(data["Q"] + data["Q"].mT) / 2)
        return Program(**data)


class Splitting:
    """The matrices of Douglas and Rachford's splitting of a program.

    The rows of G and A are divided by their norms, which changes neither the solution nor the constraints. With
    K = Q + ρ (GᵀG + AᵀA), the least of ½ zᵀQz + qᵀz + ½ρ ‖Gz − t‖² subject to Az = b is z = base + ρ HGᵀt, where
    H = K⁻¹ − K⁻¹Aᵀ(AK⁻¹Aᵀ)⁻¹AK⁻¹.

    Raises:
        ValueError: If Q is not positive semidefinite, the rows of A are dependent, or K is not positive definite.
    """

    def __init__(self, program: Program, rho: float) -> None:
        self.program = program
        self.G, self.h, self.size = _normalized(program.G, program.h)
        self.A, self.b, self.equality_size = _normalized(program.A, program.b)
        mean = program.Q.detach().diagonal(dim1=-2, dim2=-1).mean(-1)
        self.rho = rho * torch.where(mean > 0, mean, 1.0)[..., None]  # the solution does not depend on it
        _check_convex(program.Q.detach())
        penalty = self.rho[..., None] * (self.G.mT @ self.G + self.A.mT @ self.A)
        inverse, definite = invert_definite(program.Q + penalty)
        if not bool(definite.all()):
            raise ValueError(
                "Q + GᵀG + AᵀA is not positive definite, so there are directions in which neither the objective bends "
                "nor a constraint holds, and no unique solution: add a little to Q, e.g. Q + 1e-3 * torch.eye(n)"
            )
        self.T = inverse @ self.A.mT
        self.schur, independent = invert_definite(self.A @ self.T)
        if not bool(independent.all()):
            raise ValueError("the rows of A are linearly dependent: leave out those that follow from the others")
        H = inverse - self.T @ self.schur @ self.T.mT
        self.back = self.rho[..., None] * (self.G @ H)
        self.matrix = self.back @ self.G.mT  # ρ G H Gᵀ, symmetric
        self.base = times(times(self.b, self.schur), self.T.mT) - times(program.q, H)
        self.start = times(self.base, self.G.mT)

    def primal(self, v: Tensor) -> Tensor:
        """z for the state v."""
        return self.base + times(2 * torch.minimum(v, self.h) - v, self.back)

    def inequality(self, v: Tensor) -> Tensor:
        """The multipliers λ ≥ 0 of Gz ≤ h (with normalized rows) for the state v."""
        return self.rho * (v - torch.minimum(v, self.h))

    def equality(self, gradient: Tensor) -> Tensor:
        """The multipliers ν of Az = b (with normalized rows) that make ``gradient`` + Aᵀν least, in the norm of K⁻¹."""
        return -times(times(gradient, self.T), self.schur)


def _normalized(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Constraints whose rows have norm 1, and what they were divided by, on which nothing depends. Zero rows stay."""
    norm = torch.linalg.vector_norm(matrix.detach(), dim=-1)
    norm = torch.where(norm > 0, norm, 1.0)
    return matrix / norm[..., None], right / norm, norm


def _check_convex(Q: Tensor) -> None:
    n = Q.shape[-1]
    size = Q.diagonal(dim1=-2, dim2=-1).abs().amax(-1) if n else Q.new_zeros(Q.shape[:-2])
    slack = n * torch.finfo(Q.dtype).eps ** 0.75 * torch.where(size > 0, size, torch.finfo(Q.dtype).tiny)
    shifted = Q + slack[..., None, None] * torch.eye(n, dtype=Q.dtype, device=Q.device)
    if bool(torch.linalg.cholesky_ex(shifted)[1].any()):
        raise ValueError("Q is not positive semidefinite, so the program is not convex: write Q = L @ L.mT")
