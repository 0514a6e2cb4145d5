"""Which derivatives come out right: ours and TorchDEQ's, by the rows and cells that the tests are made of.

    python benchmarks/capability_table.py [--library NAME] [--quick] [--markdown]

Each row of ``tests/capabilities.py`` is measured at each cell for every forward solver and backward (``--quick``: for
those that the tests choose), and likewise for TorchDEQ's ``ift=True`` and ``hook_ift=True`` with its
``fixed_point_iter``, the most accurate of its solvers, and tolerances of 1e-15. The outcome is ``ok``, a relative
error, or the error that was raised. The results go to ``results/capabilities-NAME.json``, and from there, with
``--markdown`` without measuring anything, into ``docs/capabilities.md``. TorchDEQ takes about ten minutes, ours four.
"""

import argparse
import json
import multiprocessing
import sys
import warnings
from pathlib import Path

import torch
from measure import environment, load, table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from capabilities import ROWS, Wrong, check  # noqa: E402
from equilibria import CELLS, OURS, theirs  # noqa: E402
from test_capabilities import ALL, QUICK  # noqa: E402

from implicitnets import ConvergenceWarning  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "capabilities.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PATIENCE = 20
"""Seconds: everything that ends takes less than five."""
LIBRARIES = ("implicitnets", "torchdeq")


def outcome(row, layer, cell):
    """ok, a relative error, or the name of what was raised."""
    try:
        check(row, layer, cell)
    except Wrong as wrong:
        return {"wrong": wrong.error}
    except Exception as error:
        return {"raises": type(error).__name__, "message": str(error).split("\n")[0][:200]}
    return {"ok": True}


def work(places, layers, pipe):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", ConvergenceWarning)
    for row, cell, name in places:
        pipe.send(outcome(row, layers[name], cell))


def outcomes(places, layers):
    """The outcome of each place, measured in another process, since some neither end nor can be interrupted."""
    context, places = multiprocessing.get_context("fork"), list(places)
    while places:
        ours, childs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(places, layers, childs), daemon=True)
        process.start()
        childs.close()
        try:
            while places:
                found = ours.recv() if ours.poll(PATIENCE) else {"raises": "TimeoutError"}
                yield *places.pop(0), found
                if found.get("raises") == "TimeoutError":
                    break
        except EOFError:
            yield *places.pop(0), {"raises": "a crash"}
        process.kill()
        process.join()


def measure(library, *, quick):
    if library == "implicitnets":
        layers, places = OURS, QUICK if quick else ALL
    else:
        layers = theirs()
        places = [(row, cell, layer) for row, cell in dict.fromkeys((r, c) for r, c, _ in ALL) for layer in layers]
    cases, last = [], None
    for row, cell, name, found in outcomes(places, layers):
        if row != last:
            print(row, flush=True)
            last = row
        cases.append({"row": row, "cell": cell, "layer": name, **found})
    return {"library": library, "quick": quick, "environment": environment(torch.device("cpu")), "cases": cases}


def told(cases):
    """The outcomes of some cases in a few words."""
    good = sum("ok" in case for case in cases)
    errors = [case["wrong"] for case in cases if "wrong" in case]
    raised = list(dict.fromkeys(case["raises"] for case in cases if "raises" in case))
    if good == len(cases):
        return "ok" if cases else "–"
    parts = [f"ok at {good} of {len(cases)}"] if good else []
    if errors:
        low, high = percent(min(errors)), percent(max(errors))
        parts.append(f"**wrong** by {low}" + (f" to {high}" if high != low else ""))
    endless = f"not done in {PATIENCE} s"
    return "; ".join([*parts, *(endless if name == "TimeoutError" else f"raises {name}" for name in raised)])


def percent(error):
    return f"{100 * error:.2g} %" if error < 1 else f"{100 * error:.0f} %"


def tables(results):
    """A table of all libraries, then one of each by cell."""
    columns = {}
    for result in results:
        for layer in dict.fromkeys(case["layer"] for case in result["cases"]):
            name = "implicitnets" if result["library"] == "implicitnets" else f"TorchDEQ, {layer}"
            columns.setdefault(name, []).extend(case for case in result["cases"] if case["layer"] == layer)
    header = ["capability", *columns]
    yield (
        "All cells",
        table(
            header,
            [[row, *(told([c for c in cases if c["row"] == row]) for cases in columns.values())] for row in ROWS],
        ),
    )
    for name, cases in columns.items():
        rows = [
            [row, *(told([c for c in cases if c["row"] == row and c["cell"] == cell]) for cell in CELLS)]
            for row in ROWS
        ]
        yield name, table(["capability", *CELLS], rows)


def describe(result):
    layers = len({case["layer"] for case in result["cases"]})
    machine = result["environment"]
    versions = f"torch {machine['torch']}" + (f", torchdeq {machine['torchdeq']}" if machine["torchdeq"] else "")
    return f"{result['library']}: {len(result['cases'])} cases, {layers} layers, {versions}, {machine['date'][:10]}."


def write_page(results):
    """Put the tables between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = ["\n".join(f"- {describe(result)}" for result in results)]
    parts += [f"### {title}\n\n{body}" for title, body in tables(results)]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


def path(library):
    return RESULTS / f"capabilities-{library}.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, help="measure only this one")
    parser.add_argument("--quick", action="store_true", help="the solvers that the tests choose, not all")
    parser.add_argument("--markdown", action="store_true", help="measure nothing; write the page from what is there")
    options = parser.parse_args()
    for library in () if options.markdown else LIBRARIES:
        if options.library in (None, library):
            result = measure(library, quick=options.quick)
            path(library).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_page([load(path(library)) for library in LIBRARIES if path(library).exists()])


if __name__ == "__main__":
    main()
