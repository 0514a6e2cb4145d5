"""Two equations with a known answer, solved by whatever solver is passed.

    python examples/solve_and_swap.py [--quick]

A solver is a value: what changes from one line of the tables to the next is one argument.
"""

# %%
import math
import sys

import torch

import implicitnets as inn
from implicitnets.solvers import Anderson, Broyden, Dense, Newton, Picard, SciPy

QUICK = "--quick" in sys.argv
torch.set_default_dtype(torch.float64)

SOLVERS = {
    "Picard": Picard(max_steps=1000),
    "Picard, damped": Picard(damping=0.3, max_steps=1000),
    "Anderson": Anderson(),
    "Anderson, longer memory": Anderson(memory=10),
    "Broyden": Broyden(),
    "Newton, GMRES inside": Newton(),
    "Newton, dense inside": Newton(linear=Dense()),
    "SciPy's Newton-Krylov": SciPy("krylov"),
}


def report(f, z0, *inputs, exact, quantity=lambda z: z):
    """Solve with each solver, and print what it took and how far off it is."""
    print(f"{'solver':>24} {'steps':>6} {'calls':>6} {'residual':>9} {'error':>9}")
    for name, solver in SOLVERS.items():
        solution = inn.fixed_point(f, z0, *inputs, solver=solver)
        steps = f"{solution.steps.min()}-{solution.steps.max()}"
        error = (quantity(solution.value) - exact).abs().max()
        print(f"{name:>24} {steps:>6} {solution.evaluations:6d} {solution.residual.max():9.1e} {error:9.1e}")


# %% [markdown]
# ## Kepler's equation
# $E = M + e \sin E$ gives the eccentric anomaly E of a planet for the mean anomaly M. The inverse,
# $M = E - e \sin E$, is in closed form, so we choose E first. Each sample is a planet and stops on its own.

# %%
eccentricity = torch.linspace(0.0, 0.9, 5 if QUICK else 50)[:, None]
exact = torch.linspace(0.1, 3.0, len(eccentricity))[:, None]
mean_anomaly = exact - eccentricity * exact.sin()


def kepler(z, m, e):
    return m + e * z.sin()


print("Kepler's equation:")
report(kepler, mean_anomaly, mean_anomaly, eccentricity, exact=exact)

# %% [markdown]
# ## Chandrasekhar's H-equation
# $H(\mu) = (1 - \frac{c}{2} \int_0^1 \frac{\mu H(\nu)}{\mu + \nu} d\nu)^{-1}$, from radiative transfer, by the
# midpoint rule. Its solution has the mean $\frac{2}{c} (1 - \sqrt{1 - c})$, for the discrete equation as well. As c
# goes to 1 the equation becomes singular: the samples are a row of albedos c.

# %%
points = 32 if QUICK else 128
mu = (torch.arange(points) + 0.5) / points
kernel = (mu[:, None] / (mu[:, None] + mu)).T / (2 * points)
albedo = torch.tensor([[0.5], [0.9], [0.99], [0.999]])


def chandrasekhar(h, c):
    return 1 / (1 - c * (h @ kernel))


print("\nChandrasekhar's H-equation:")
report(
    chandrasekhar,
    torch.ones(len(albedo), points),
    albedo,
    exact=2 / albedo * (1 - (1 - albedo).sqrt()),
    quantity=lambda h: h.mean(1, keepdim=True),
)

# %% [markdown]
# ## Tolerances
# A residual of $10^{-4}$ is not an error of $10^{-4}$: where the equation is nearly singular, the error is larger.
# Asking for more costs a few steps.

# %%
print("\nAnderson at tighter tolerances, mean of H at c = 0.999:")
for rtol in (1e-4, 1e-6, 1e-8, 1e-10):
    solver = Anderson(rtol=rtol, atol=0.0)
    solution = inn.fixed_point(chandrasekhar, torch.ones(1, points), albedo[3:], solver=solver)
    error = abs(solution.value.mean().item() - 2 / 0.999 * (1 - math.sqrt(0.001)))
    print(f"rtol {rtol:.0e}: {solution.steps.item():3d} steps, error {error:.1e}")
