# SPDX-License-Identifier: Apache-2.0
"""Runs the fault matrix of python_tests/fault_cases.py and writes its table into docs/reliability.md.

    python tools/fault_table.py --seeds 20 --markdown docs/reliability.md

Every kind of fault, at every place, in each of the eight streams of both beds, with every seed; with
`--victims 1` in one stream per seed, each in turn. Runs that are done are kept in `--record`, one line each,
so that an interrupted run goes on where it was; delete the file, or name another one, after a change to the
engine.

Exit code 0 only if every run went as it must.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python_tests"))

from fault_beds import BEDS, STREAMS  # noqa: E402
from fault_cases import NOT_APPLICABLE, OUTCOMES, PAIRS, PLACES, Case, run  # noqa: E402

BEGIN, END = "<!-- faults:begin -->\n", "<!-- faults:end -->\n"
REPORT_SECONDS = 15.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--victims", type=int, default=STREAMS, help="how many of the streams, per seed")
    parser.add_argument("--bed", action="append", choices=BEDS, help="only these; may be repeated")
    parser.add_argument("--kind", action="append", choices=OUTCOMES, help="only these; may be repeated")
    parser.add_argument("--place", action="append", choices=PLACES, help="only these; may be repeated")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "faults.jsonl")
    parser.add_argument("--markdown", type=Path, help="file whose table is replaced, when all has run")
    options = parser.parse_args()
    if options.markdown and (options.bed or options.kind or options.place):
        parser.error("--markdown needs the whole matrix: leave --bed, --kind and --place out")
    torch.set_num_threads(1)
    gc.freeze()  # the engine collects garbage when memory is short; of PyTorch itself there is none
    chosen = [
        Case(kind, place, victim, seed, bed)
        for bed in options.bed or BEDS
        for turn in range(min(options.victims, STREAMS))
        for seed in range(options.seeds)
        for kind, place in PAIRS
        for victim in [(seed + turn) % STREAMS]
        if kind in (options.kind or OUTCOMES) and place in (options.place or PLACES)
    ]
    found = run_all([case for case in chosen if case.applies], options.record)
    for case, problem in found.items():
        if problem:
            print(f"{case}: {problem}")
    if options.markdown:
        write(options.markdown, table(found))
    failed = sum(bool(problem) for problem in found.values())
    print(f"{len(found)} runs, {failed} failed")
    return int(failed > 0)


def run_all(cases: list[Case], record: Path) -> dict[Case, str]:
    """Each case and what went wrong in it ("": nothing)."""
    done: dict[Case, str] = {}
    if record.is_file():
        for line in record.read_text().splitlines():
            *case, problem = json.loads(line)
            done[Case(*case)] = problem
    record.parent.mkdir(parents=True, exist_ok=True)
    reported = time.monotonic()
    with record.open("a", buffering=1) as file:
        for number, case in enumerate(cases):
            if case not in done:
                if number % 50 == 0:
                    gc.collect()  # an engine that failed is in circles with its error, and its pages with it
                done[case] = attempt(case)
                file.write(json.dumps([*astuple(case), done[case]]) + "\n")
            if time.monotonic() - reported > REPORT_SECONDS:
                failed = sum(bool(done[c]) for c in cases[: number + 1])
                print(f"{number + 1} of {len(cases)}, {failed} failed", file=sys.stderr, flush=True)
                reported = time.monotonic()
    return {case: done[case] for case in cases}


def attempt(case: Case) -> str:
    try:
        run(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def table(found: dict[Case, str]) -> str:
    """Runs that went as they must, of all: for each bed, one row per kind, one column per place."""
    total, good = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for case, problem in found.items():
        total[case.bed, case.kind, case.place] += 1
        good[case.bed, case.kind, case.place] += not problem
    seeds = len({case.seed for case in found})
    victims = len({case.victim for case in found if case.seed == 0})
    reasons = list(dict.fromkeys(NOT_APPLICABLE.values()))

    def cell(bed: str, kind: str, place: str) -> str:
        if (kind, place) in NOT_APPLICABLE:
            return f"— ({reasons.index(NOT_APPLICABLE[kind, place]) + 1})"
        runs = total[bed, kind, place]
        return f"{good[bed, kind, place]} of {runs}" if runs else "—"

    lines = [
        f"`python tools/fault_table.py --seeds {seeds} --victims {victims} --markdown docs/reliability.md`:",
        f"{total.total():,} runs, of which {good.total():,} went as they must.",
    ]
    for bed in BEDS:
        lines += ["", f"**{bed}**", ""]
        lines += ["| fault | " + " | ".join(PLACES) + " |", "|---" * (len(PLACES) + 1) + "|"]
        for kind in OUTCOMES:
            lines.append(f"| {kind} | " + " | ".join(cell(bed, kind, place) for place in PLACES) + " |")
    lines += ["", "Combinations that make no sense:", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + BEGIN + text + END + rest.split(END)[1])


if __name__ == "__main__":
    sys.exit(main())
