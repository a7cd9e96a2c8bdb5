"""Fuzz every file reader: reading a changed file must succeed or raise KdepError within seconds.

python -m tests.fuzz --inputs 3000 --seconds 15   # what `make fuzz` runs
python -m tests.fuzz --only record --seed 7       # one reader
An input that causes another exception or a hang is stored in the folder --keep; its name has the
reader and the seed.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kdep_bench.errors import KdepError
from tests.fuzz.targets import TARGETS, Target

SLOW = 10.0  # limit per input, seconds of CPU time; the largest image that is accepted takes 7
MEMORY = 8 << 30  # address space of the process; more is a MemoryError


@dataclass
class Outcome:
    """Counts of the inputs of one reader; `faults`: (seed, description)."""

    name: str
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[tuple[int, str]] = field(default_factory=list)


class Hang(BaseException):
    """Raised by a timer when a reader takes too long."""


def stop_hanging_reader(*_: object) -> None:
    """Signal handler of the timers of CPU time and wall time."""
    raise Hang


def run(target: Target, inputs: int, seed: int, seconds: float, keep: Path | None) -> Outcome:
    """Feeds `inputs` changed files to a reader, or as many as `seconds` of CPU time allow."""
    outcome = Outcome(target.name)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, stop_hanging_reader)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, read = target.setup(Path(folder))
        valid = path.read_bytes()
        read()  # the unchanged file must be valid
        until = time.process_time() + seconds
        while outcome.inputs < inputs and time.process_time() < until:
            input_seed = seed + outcome.inputs
            raw = target.mutate(random.Random(input_seed), valid)
            path.write_bytes(raw)
            fault = read_once(read, outcome)
            if fault:
                outcome.faults.append((input_seed, fault))
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    name = "".join(c if c.isalnum() else "_" for c in target.name)
                    (keep / f"{name}-{input_seed}{path.suffix}").write_bytes(raw)
    return outcome


def read_once(read, outcome: Outcome) -> str:
    """Reads the file once; returns a description of the fault, or ''."""
    outcome.inputs += 1
    begun = time.process_time()
    fault = ""
    # CPU time. A read between SLOW and this limit ends, and is reported with its time.
    signal.setitimer(signal.ITIMER_PROF, 4 * SLOW)
    # Wall time, for a reader that waits without end; generous, since other work slows a reader.
    signal.setitimer(signal.ITIMER_REAL, 20 * SLOW)
    try:
        read()
    except KdepError as e:
        outcome.refused += 1
        text = str(e)
        if "weights_only" in text or "\x1b" in text or "Traceback" in text:
            fault = f"KdepError: {text[:300]!r}"
    except Hang:
        fault = "hang"
    except Exception as e:
        import traceback

        trace = traceback.extract_tb(e.__traceback__)
        own_frame = next((f for f in reversed(trace) if "kdep_bench" in f.filename), trace[-1])
        location = f"{Path(own_frame.filename).name}:{own_frame.lineno}"
        fault = f"{type(e).__name__} at {location}: {str(e)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.process_time() - begun
    outcome.slowest = max(outcome.slowest, took)
    return fault or (f"took {took:.1f} s" if took > SLOW else "")


def report_table(outcomes: list[Outcome], seed: int) -> str:
    """The report as Markdown."""
    total = sum(o.inputs for o in outcomes)
    faults = sum(len(o.faults) for o in outcomes)
    rows = [
        "# Fuzzing of the readers",
        "",
        "`make fuzz` mutates valid files (a node of a JSON, a field of a tar header with a",
        "corrected checksum, a chunk of a PNG, a word of a list, single bytes) and reads",
        "them. Each read must succeed or raise KdepError (refused), within 10 s of CPU time and",
        "8 GiB of address space.",
        "",
        f"{total} inputs, seeds from {seed}; {faults} faults in this run.",
        "",
        "| reader | inputs | refused | read | slowest, s | faults |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for o in outcomes:
        read = o.inputs - o.refused - len(o.faults)
        row = (o.name, o.inputs, o.refused, read, f"{o.slowest:.2f}", len(o.faults))
        rows.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Prints and writes the report; returns 1 if a reader has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2000, help="maximum inputs per reader")
    parser.add_argument("--seconds", type=float, default=15, help="CPU seconds per reader")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--only", default="", help="readers whose name contains this")
    parser.add_argument(
        "--keep", type=Path, default=Path("work_dirs/fuzz"), help="folder for failures"
    )
    parser.add_argument("--out", type=Path, help="write the table here")
    args = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes = []
    for target in TARGETS:
        if args.only.lower() not in target.name.lower():
            continue
        outcome = run(target, args.inputs, args.seed, args.seconds, args.keep)
        outcomes.append(outcome)
        print(
            f"{outcome.name}: {outcome.inputs} inputs, {outcome.refused} refused, "
            f"{outcome.slowest:.2f} s",
            flush=True,
        )
        kinds = Counter(f for _, f in outcome.faults)
        for fault, count in kinds.most_common(12):
            first = next(n for n, f in outcome.faults if f == fault)
            print(f"  {count} x {fault} (first: seed {first})", flush=True)
    if args.out:
        args.out.write_text(report_table(outcomes, args.seed))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
