"""Deep equilibrium and implicit models: solve z = f(z), differentiate it, train and analyze what is built on it."""

from . import activations, analysis, backward, constraints, models, nonsmooth, prox, solvers, training
from .backward import Backward, Implicit, Unroll
from .fixed_point import fixed_point
from .models import DEQ
from .solution import ConvergenceWarning, Solution, Status
from .solvers import Solver

__all__ = [
    "DEQ",
    "Backward",
    "ConvergenceWarning",
    "Implicit",
    "Solution",
    "Solver",
    "Status",
    "Unroll",
    "activations",
    "analysis",
    "backward",
    "constraints",
    "fixed_point",
    "models",
    "nonsmooth",
    "prox",
    "solvers",
    "training",
]
