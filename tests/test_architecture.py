"""The house: imports go down its floors, without cycles or delays, and files stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "implicitnets"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 260

FLOORS = [
    {"solution", "norms", "pytree", "values", "linalg", "balls"},
    {"nonsmooth", "activations"},
    {"solvers", "prox", "constraints"},
    {"backward"},
    {"fixed_point"},
    {"models"},
    {"rows"},
    {"matching"},
    {"analysis"},
    {"training"},
    {"images", "data", "storage", "experiment", "run", "report", "plots"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FACADE = "the façade"
OPTIONAL = {
    "torchdeq",
    "torchvision",
}  # what may be imported inside a function, since it need not be installed


def room(file):
    """The module, or the package, right under implicitnets that a file belongs to."""
    top = file.relative_to(PACKAGE).parts[0]
    return FACADE if top == "__init__.py" else top.removesuffix(".py")


def is_one_file(file):
    return file.parent == PACKAGE


def package_of(file):
    """What a relative import in this file is relative to, as parts of a dotted name."""
    return ["implicitnets", *file.relative_to(PACKAGE).parent.parts]


def imported_names(node, file):
    """The dotted names an import statement brings in, absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package_of(file)[: len(package_of(file)) + 1 - node.level] if node.level else []
    stem = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{stem}.{alias.name}" for alias in node.names]


def file_of(name):
    """The file of a dotted name inside the package: of the module it is, or of the one it is defined in."""
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        path = PACKAGE.joinpath(*parts[:end])
        for candidate in (path.with_suffix(".py") if end else None, path / "__init__.py"):
            if candidate and candidate.is_file():
                return candidate
    raise AssertionError(f"{name} is not in the package")


def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file):
    return [node for node in ast.walk(tree(file)) if isinstance(node, ast.Import | ast.ImportFrom)]


def inner_imports(file):
    """The files of the package that a file imports."""
    names = [name for node in imports_of(file) for name in imported_names(node, file)]
    return {file_of(name) for name in names if name.split(".")[0] == "implicitnets"}


def label(file):
    return str(file.relative_to(PACKAGE))


each_file = pytest.mark.parametrize("file", FILES, ids=label)


@each_file
def test_stands_on_a_floor(file):
    assert room(file) == FACADE or room(file) in FLOOR


@each_file
def test_imports_go_down_or_stay_in_the_room(file):
    if room(file) == FACADE:
        return
    for target in inner_imports(file):
        assert room(target) != FACADE, "imports the façade"
        here, there = FLOOR[room(file)], FLOOR[room(target)]
        # Rooms of one file each share their floor; that they do not run in circles is tested below.
        together = room(target) == room(file) or (here == there and is_one_file(file) and is_one_file(target))
        assert there < here or together, f"imports {label(target)}, which is not below"


@each_file
def test_imports_stand_at_the_top(file):
    functions = [n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    delayed = {
        name.split(".")[0]
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node, file)
    }
    assert delayed <= OPTIONAL


def test_there_is_no_cycle():
    graph = {file: inner_imports(file) - {file} for file in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@each_file
def test_fits_in_a_room(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST
