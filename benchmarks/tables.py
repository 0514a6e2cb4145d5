"""The results of the solver benchmark as Markdown tables."""

from measure import median, table

__all__ = ["costs", "disturbance", "disturbed", "each", "summary"]


def figure(values, form="{:.2f}"):
    """The median of what is there."""
    present = [value for value in values if value is not None]
    return form.format(median(present)) if present else "–"


def groups(records):
    """All cases, then those by family, cell and so on."""
    yield "all", records
    for key in ("family", "cell", "n", "batch", "contraction"):
        for value in sorted({record[key] for record in records}, key=lambda v: (v is None, v or 0)):
            label = "not known" if value is None else value
            yield f"{key} {label}", [record for record in records if record[key] == value]


def summary(records, rivals):
    """Time ratios, theirs to ours, by group."""
    header = ["cases", "number", "rate", "ratio", "least ratio", "ratio ≥ 1", *rivals]
    rows = []
    for label, group in groups(records):
        ratios = [record["ratio"] for record in group if record["ratio"] is not None]
        rows.append(
            [
                label,
                len(group),
                figure(record["rate"] for record in group),
                figure(ratios),
                f"{min(ratios):.2f}" if ratios else "–",
                f"{sum(ratio >= 1 for ratio in ratios)} of {len(ratios)}",
                *(figure(record["same_method"][kind] for record in group) for kind in rivals),
            ]
        )
    return table(header, rows)


def disturbance(record):
    """The largest ratio, over the solvers of a case, of the median time to the fastest."""
    return max((s["seconds"] / s["fastest"] for s in record["solvers"].values() if s["converged"]), default=1.0)


def disturbed(record):
    """Whether something else on the machine got in the way of a case."""
    return disturbance(record) > 1.5


def costs(records):
    """Two tables by shape: microseconds outside f in an evaluation, and the peak of memory in MiB."""
    names = list(records[0]["solvers"])
    outside, memory = [], []
    for n, batch in dict.fromkeys((record["n"], record["batch"]) for record in records):
        group = [record for record in records if (record["n"], record["batch"]) == (n, batch)]
        label = f"n = {n}, batch {batch}"
        alone = figure((1e6 * record["f_seconds"] for record in group), "{:.0f}")
        outside.append([label, alone, *(figure(map(spent_outside, of(name, group)), "{:.0f}") for name in names)])
        memory.append([label, *(figure(map(mebibytes, of(name, group)), "{:.1f}") for name in names)])
    return (
        table(["microseconds outside f, per evaluation", "f itself", *names], outside),
        table(["MiB at the peak", *names], memory),
    )


def of(name, group):
    return [record["solvers"][name] for record in group]


def spent_outside(record):
    return 1e6 * record["outside"] / record["evaluations"] if "outside" in record else None


def mebibytes(record):
    return record["memory"] / 2**20 if record.get("memory") is not None else None


def each(records):
    """One line a case: the ratio, and evaluations and milliseconds of each solver."""
    names = list(records[0]["solvers"])
    rows = []
    for record in records:
        ratio = "–" if record["ratio"] is None else f"{record['ratio']:.2f}"
        cells = [spent(record["solvers"][name]) for name in names]
        rows.append([record["name"], f"{record['rate']:.2f}", ratio, *cells])
    return table(["case", "rate", "ratio", *(f"{name}: f, ms" for name in names)], rows)


def spent(record):
    return f"{record['evaluations']}, {1e3 * record['seconds']:.3g}" if record["converged"] else "failed"
