"""Our strategies and scores beside those of other libraries: the same arrays, machine, threads and interpreter.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmark/requirements-peers.txt
    .venv-peers/bin/pip install --no-deps baal==2.1.0
    .venv-peers/bin/python -m benchmark.peers [--sizes 2000,10000,100000,1000000] [--algorithms k_center] [--again]

Every (library, algorithm, size) runs in a process of its own under a limit of time and of memory, so that "out of
time" and "out of memory" are seen, not guessed. Resumable: what is in `results/peers.json` is not run again without
`--again`; `results/peers.md` is made from it each time (`--page` makes only that). Pools lie in `build/peers`: 2.5 GB
for the largest. Wants an idle machine: with two threads on busy cores PyTorch waits at barriers, and so does ours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import peers_data
from .peers_calls import JOINTLY, NOTES, PEERS, K
from .peers_data import MORE_IS_BETTER

RESULTS = Path(__file__).parent / "results"
LIMIT_S = {2_000: 60.0, 10_000: 30.0, 100_000: 40.0, 1_000_000: 60.0}
SMALL = 2_000  # here only what peers cannot do with more
FOR_SMALL = ("batchbald",)
SHOWN = (10_000, 100_000, 1_000_000)
# Student's t, two-sided 95 %, for so many runs.
_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}

Row = dict[str, Any]


# ---------------------------------------------------------------------- running
def measure(algorithm: str, library: str, n: int, folder: Path, memory_gb: float, threads: int) -> Row:
    """One row of results."""
    limit = LIMIT_S.get(n, 120.0)
    variables = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    command = [sys.executable, "-W", "ignore", "-m", "benchmark.peers_calls", algorithm, library, str(n)]
    done = subprocess.run(
        [*command, str(folder), str(limit), str(memory_gb), str(threads)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    runs = [line for line in said if line.get("outcome") == "done"]
    row: Row = {"algorithm": algorithm, "library": library, "rows": n, "threads": threads}
    row |= {"limit_s": limit, "limit_gb": memory_gb}
    failed = [line for line in said if line.get("outcome", "done") != "done"]
    if runs:
        row["outcome"] = "done"
        row["seconds"] = [round(run["seconds"], 5) for run in runs]
        # Of all threads: what other programs on the machine disturb less.
        row["processor_seconds"] = [round(run["processor"], 5) for run in runs]
        row["peak_mb"] = round(max(run["peak"] for run in runs) / 2**20, 1)
        row["picks"] = runs[0]["picks"]
        row["yardsticks"] = {name: [run["yardsticks"][name] for run in runs] for name in runs[0]["yardsticks"]}
    elif failed:
        row |= failed[0]
    else:
        row["outcome"] = _ending(done.returncode, bool(said))
        if row["outcome"] == "failed":
            row["error"] = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
    return row


def _ending(code: int, ready: bool) -> str:
    """What a process without a result died of."""
    if ready and code == -signal.SIGALRM:
        return "out of time"
    # A refused allocation in compiled code ends the process; the kernel kills when the machine has no memory left.
    if ready and code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV):
        return f"out of memory (signal {-code})"
    return "failed"


def machine() -> Row:
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    names = ("torch", "numpy", "scipy", "scikit-learn", "scikit-activeml", "small-text", "baal", "modAL-python")
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def run_all(args: argparse.Namespace, path: Path) -> None:
    found = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows: dict[tuple[str, str, int], Row] = {_key(row): row for row in found["rows"]}
    algorithms = list(dict.fromkeys(name for name, _ in PEERS))
    for n in (int(size) for size in args.sizes.split(",")):
        peers_data.load(args.data, n, sampled=False)  # made once, before anything is timed
        usual = algorithms if n > SMALL else list(FOR_SMALL)
        for algorithm in usual if args.algorithms is None else args.algorithms.split(","):
            for library in ("ours", *(peer for name, peer in PEERS if name == algorithm)):
                if args.libraries and library.split(",")[0] not in args.libraries.split(","):
                    continue
                if (algorithm, library, n) in rows and not args.again:
                    continue
                row = measure(algorithm, library, n, args.data, args.memory, args.threads)
                rows[_key(row)] = row
                print(f"{n:>9,} {algorithm:16} {library:32} {_time(row)}", flush=True)
                about = {"k": K, "k_batchbald": JOINTLY, "seed_runs": "0, 1, ... in order"}
                text = json.dumps({"machine": machine(), "about": about, "rows": list(rows.values())})
                # A line a row: differences can be read.
                path.write_text(text.replace('{"algorithm"', '\n{"algorithm"') + "\n")


def _key(row: Row) -> tuple[str, str, int]:
    return row["algorithm"], row["library"], row["rows"]


# ---------------------------------------------------------------------- the page
def page(found: Row) -> str:
    """Both tables, from what was measured."""
    rows = {_key(row): row for row in found["rows"]}
    facts = found["machine"]
    threads = " or ".join(str(count) for count in sorted({row["threads"] for row in found["rows"]}))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Beside other libraries",
        "",
        "Made by `python -m benchmark.peers`; see it for how to run it.",
        "",
        f"{facts['cores']} cores ({facts['processor']}), {threads} threads, {facts['memory_gb']} GB; Python "
        f"{facts['python']}, {versions}.",
        "",
        f"k = {K} ({JOINTLY} for BatchBALD) of a pool of synthetic clusters: {peers_data.WIDTH} features, "
        f"{peers_data.CLASSES} classes, {peers_data.SAMPLES} posterior samples, {peers_data.LABELLED} labels. "
        "Features, probabilities and samples are given to all; seconds of the query alone, the shortest of up to five "
        "runs (on large pools fewer), ours with making its `Pool`. A ratio above 1: ours is faster. One call may take "
        + ", ".join(f"{seconds:.0f} s at {n:,} rows" for n, seconds in LIMIT_S.items() if n in SHOWN)
        + f"; {_memory_limit(found):.0f} GB above the data.",
        "",
        "| algorithm | peer | " + " | ".join(f"{n:,}: ours, peer, ratio" for n in SHOWN) + " | same picks at 10,000 |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]
    for algorithm, library in PEERS:
        cells = [_cell(rows.get((algorithm, "ours", n)), rows.get((algorithm, library, n))) for n in SHOWN]
        same = _same(rows.get((algorithm, "ours", 10_000)), rows.get((algorithm, library, 10_000)))
        lines.append(f"| {algorithm} | {library} | {' | '.join(cells)} | {same} |")
    lines += [
        "",
        "## What the choices are worth",
        "",
        "By yardsticks that share no code with the libraries (`benchmark/peers_data.py`): mean of the runs with its "
        "95 % interval where chance is in it. **bold**: better beyond both intervals. Arrows say which way is better.",
        "",
        "| algorithm | peer | rows | by | ours | peer |",
        "|---|---|---|---|---|---|",
    ]
    for algorithm, library in PEERS:
        for n in sorted({row["rows"] for row in found["rows"]}):
            lines += _worth(rows.get((algorithm, "ours", n)), rows.get((algorithm, library, n)))
    lines += ["", "## Memory", "", "Most memory held during a call, above what was held before, in MB.", ""]
    lines += ["| algorithm | library | " + " | ".join(f"{n:,}" for n in SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for algorithm in dict.fromkeys(name for name, _ in PEERS):
        for library in ("ours", *(peer for name, peer in PEERS if name == algorithm)):
            cells = [_peak(rows.get((algorithm, library, n))) for n in SHOWN]
            lines.append(f"| {algorithm} | {library} | {' | '.join(cells)} |")
    lines += ["", "## Where definitions differ", ""]
    lines += [f"* {algorithm}, {library}: {note}." for (algorithm, library), note in NOTES.items()]
    return "\n".join(lines) + "\n"


def _memory_limit(found: Row) -> float:
    return max(row["limit_gb"] for row in found["rows"])


def _time(row: Row | None) -> str:
    if row is None:
        return "–"
    if row["outcome"] != "done":
        return str(row["outcome"])
    seconds = min(row["seconds"])
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def _peak(row: Row | None) -> str:
    return f"{row['peak_mb']:,.0f}" if row and row["outcome"] == "done" else _time(row)


def _cell(ours: Row | None, peer: Row | None) -> str:
    if ours is None and peer is None:
        return ""
    ratio = ""
    if ours and peer and ours["outcome"] == "done":
        if peer["outcome"] == "done":
            times = min(peer["seconds"]) / min(ours["seconds"])
            ratio = f", {times:.2g} ×" if times < 100 else f", {times:,.0f} ×"
        elif peer["outcome"] == "out of time":
            ratio = f", > {peer['limit_s'] / min(ours['seconds']):,.0f} ×"
    return f"{_time(ours)}, {_time(peer)}{ratio}"


def _same(ours: Row | None, peer: Row | None) -> str:
    if not ours or not peer or ours["outcome"] != "done" or peer["outcome"] != "done":
        return ""
    return f"{len(set(ours['picks']) & set(peer['picks']))} of {len(ours['picks'])}"


def _worth(ours: Row | None, peer: Row | None) -> list[str]:
    if not ours or not peer or ours["outcome"] != "done" or peer["outcome"] != "done":
        return []
    lines = []
    for name, mine in ours["yardsticks"].items():
        theirs = peer["yardsticks"][name]
        (a, a_half), (b, b_half) = _interval(mine), _interval(theirs)
        texts = [
            f"{a:.4g}" + (f" ± {a_half:.2g}" if a_half else ""),
            f"{b:.4g}" + (f" ± {b_half:.2g}" if b_half else ""),
        ]
        apart = abs(a - b) > a_half + b_half + 1e-6 * abs(a)
        if apart and min(len(mine), len(theirs)) > 1:
            better = 0 if (a > b) == MORE_IS_BETTER[name] else 1
            texts[better] = f"**{texts[better]}**"
        arrow = "↑" if MORE_IS_BETTER[name] else "↓"
        lines.append(
            f"| {ours['algorithm']} | {peer['library']} | {ours['rows']:,} | {name} {arrow} | {texts[0]} | {texts[1]} |"
        )
    return lines


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval; 0 for a single run."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, _T[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2000,10000,100000,1000000", help="rows of the pools")
    parser.add_argument("--algorithms", help="only these, separated by commas")
    parser.add_argument("--libraries", help="only these, separated by commas; ours is one")
    parser.add_argument("--again", action="store_true", help="run what was run before")
    parser.add_argument("--memory", type=float, default=12.0, help="GB that a call may take above its data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("build/peers"), help="where pools are kept")
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--page", action="store_true", help="only make the page from the results")
    args = parser.parse_args()
    if not args.page:
        run_all(args, args.results)
    args.results.with_suffix(".md").write_text(page(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
