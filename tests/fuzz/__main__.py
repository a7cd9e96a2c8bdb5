"""Fuzz every file reader: any result other than success or a KdepError within seconds is a fault.

python -m tests.fuzz --inputs 3000 --seconds 15   # what `make fuzz` runs
python -m tests.fuzz --only record --seed 7       # one reader
An input that causes another exception or a hang is kept in --keep, named after its reader and seed.
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

SLOW = 10.0  # limit per input, seconds of CPU time; decoding 89 megapixels three times takes 7
MEMORY = 8 << 30  # address space of the process; more is a MemoryError


@dataclass
class Outcome:
    """Counts of the inputs of one reader; `faults`: (seed, description)."""

    name: str
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[tuple[int, str]] = field(default_factory=list)


class _Hang(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise _Hang


def run(target: Target, inputs: int, seed: int, seconds: float, keep: Path | None) -> Outcome:
    """Feeds `inputs` changed files to a reader, or as many as `seconds` of CPU time allow."""
    out = Outcome(target.name)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _alarm)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, read = target.setup(Path(folder))
        valid = path.read_bytes()
        read()  # the unchanged file must be valid
        until = time.process_time() + seconds
        while out.inputs < inputs and time.process_time() < until:
            input_seed = seed + out.inputs
            raw = target.mutate(random.Random(input_seed), valid)
            path.write_bytes(raw)
            fault = _feed(read, out)
            if fault:
                out.faults.append((input_seed, fault))
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    name = "".join(c if c.isalnum() else "_" for c in target.name)
                    (keep / f"{name}-{input_seed}{path.suffix}").write_bytes(raw)
    return out


def _feed(read, out: Outcome) -> str:
    """Reads once; returns the fault as 'Type: text', or ''."""
    out.inputs += 1
    begun = time.process_time()
    fault = ""
    signal.setitimer(signal.ITIMER_PROF, 4 * SLOW)  # CPU time
    # Wall time, for a reader that waits without end; generous, since other work slows a reader.
    signal.setitimer(signal.ITIMER_REAL, 20 * SLOW)
    try:
        read()
    except KdepError as e:
        out.refused += 1
        text = str(e)
        if "weights_only" in text or "\x1b" in text or "Traceback" in text:
            fault = f"KdepError: {text[:300]!r}"
    except _Hang:
        fault = "hang"
    except Exception as e:
        import traceback

        where = traceback.extract_tb(e.__traceback__)
        ours = next((f for f in reversed(where) if "kdep_bench" in f.filename), where[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        fault = f"{type(e).__name__} at {place}: {str(e)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.process_time() - begun
    out.slowest = max(out.slowest, took)
    return fault or (f"took {took:.1f} s" if took > SLOW else "")


def table(outcomes: list[Outcome], seed: int) -> str:
    """The report as Markdown."""
    total = sum(o.inputs for o in outcomes)
    faults = sum(len(o.faults) for o in outcomes)
    rows = [
        "# Fuzzed readers",
        "",
        "`make fuzz` mutates valid files (a node of a JSON, a field of a tar header with a",
        "corrected checksum, a chunk of a PNG, a word of a list, single bytes) and reads",
        "them. Each read must succeed or raise KdepError, within 10 s of CPU time and 8 GiB.",
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
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--inputs", type=int, default=2000, help="maximum inputs per reader")
    p.add_argument("--seconds", type=float, default=15, help="CPU seconds per reader")
    p.add_argument("--seed", type=int, default=0, help="first seed")
    p.add_argument("--only", default="", help="readers whose name contains this")
    p.add_argument("--keep", type=Path, default=Path("work_dirs/fuzz"), help="folder for failures")
    p.add_argument("--out", type=Path, help="write the table here")
    args = p.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes = []
    for target in TARGETS:
        if args.only.lower() not in target.name.lower():
            continue
        o = run(target, args.inputs, args.seed, args.seconds, args.keep)
        outcomes.append(o)
        print(f"{o.name}: {o.inputs} inputs, {o.refused} refused, {o.slowest:.2f} s", flush=True)
        kinds = Counter(f for _, f in o.faults)
        for fault, count in kinds.most_common(12):
            first = next(n for n, f in o.faults if f == fault)
            print(f"  {count} x {fault} (first: seed {first})", flush=True)
    if args.out:
        args.out.write_text(table(outcomes, args.seed))
    return int(any(o.faults for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
