"""`tools/run_suite.py`: plan, explain, run, collect. Torch is imported in the stages alone."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.engine import machine, select
from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan

EPILOG = """Configs are executed as Python code: read other people's configs before running them.
Exit codes: 0 all done, 1 a stage failed, 2 bad config or argument, 130/143 interrupted."""


def parser() -> argparse.ArgumentParser:
    """The command line; no heavy import."""
    p = argparse.ArgumentParser(
        prog="run_suite.py",
        description="Run a suite. Finished stages are skipped, interrupted ones resume.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("suite", nargs="?", help="a suite config, or its name in configs/suites/")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument("--results-dir", type=Path, help="output folder (default: results/<suite>/)")
    p.add_argument("--jobs", "-j", type=int, help="parallel stages (default: by cores)")
    p.add_argument("--gpus", help="GPU numbers, e.g. 0,1 ('' = none; default: all)")
    p.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run only stages of this method, task, student, kind or id (substring or glob) and "
        "their dependencies",
    )
    p.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="rerun these stages (kind, substring of the id, or glob) and all that depend on them",
    )
    p.add_argument(
        "--retry", type=int, default=0, metavar="N", help="retries of a failed stage (default: 0)"
    )
    stop = p.add_mutually_exclusive_group()
    stop.add_argument(
        "--keep-going", action="store_true", help="run independent stages after a failure (default)"
    )
    stop.add_argument("--fail-fast", action="store_true", help="start nothing after a failure")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the stages in order, why each would run, and the cost",
    )
    rate = p.add_mutually_exclusive_group()
    rate.add_argument(
        "--device-rate",
        metavar="RATE",
        help="throughput for the forecast: TFLOP/s reached, or DEVICE.FORMAT:FRACTION of the peak, "
        "e.g. a100.tf32:0.3",
    )
    rate.add_argument(
        "--measure-throughput",
        action="store_true",
        help="for the forecast: measure the suite's networks here, some seconds per network",
    )
    rate.add_argument("--probe", **_old_name("measure_throughput"))
    p.add_argument(
        "--count-flops",
        action="store_true",
        help="for the forecast: count the FLOPs of networks not stored yet",
    )
    p.add_argument("--count", **_old_name("count_flops"))
    p.add_argument(
        "--budget-hours",
        type=float,
        metavar="H",
        help="exit with an error if the run would take more GPU-hours",
    )
    p.add_argument(
        "--fit-budget",
        action="store_true",
        help="with --budget-hours: run the comparisons that fit, cheapest per transfer run first",
    )
    p.add_argument("--fit", **_old_name("fit_budget"))
    p.add_argument(
        "--executor",
        default="local",
        metavar="NAME",
        help="local (default), or through Snakemake: slurm, snakemake-local or another plugin",
    )
    p.add_argument(
        "--snakemake",
        default="",
        metavar="'ARGUMENTS'",
        help="extra Snakemake arguments, e.g. '--default-resources slurm_partition=main'",
    )
    p.add_argument(
        "--write-plan",
        type=Path,
        metavar="FILE",
        help="write the plan for `python -m kdep_bench.engine.stage` and exit",
    )
    p.add_argument(
        "--rehearse",
        action="store_true",
        help="run every stage of a full-scale suite on tiny generated data with random teacher "
        "weights (default work dir: work_dirs/rehearsal/)",
    )
    p.add_argument("--verify", action="store_true", help="recompute all file checksums first")
    p.add_argument("--report", action="store_true", help="rebuild tables even if nothing changed")
    p.add_argument("--plain", action="store_true", help="no progress bars, also on a terminal")
    p.add_argument(
        "--list",
        choices=("methods", "teachers", "students", "tasks", "suites", "data", "claims"),
        help="list the configs of one kind and exit",
    )
    return p


def _old_name(dest: str) -> dict[str, Any]:
    """Arguments of a flag's former name, which still works and which no help shows."""
    return {"dest": dest, "action": "store_true", "help": argparse.SUPPRESS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. A KdepError becomes one sentence and 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    p = parser()
    args = p.parse_args(arguments)
    try:
        if args.list:
            return _list(args.list)
        if not args.suite:
            p.error("a suite is needed (see --list suites)")
        for name in ("jobs", "retry"):
            value = getattr(args, name)
            if value is not None and value < (1 if name == "jobs" else 0):
                raise KdepError(
                    f"--{name} is {value}", expected="a positive number", fix=f"correct --{name}"
                )
        _check_budget(args)
        return _run(args, arguments)
    except KdepError as e:
        print(f"run_suite: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # an OSError that is no disk's
        raise
    except OSError as e:
        print(f"run_suite: {disk_fault(e)}", file=sys.stderr)
        return 1


def _check_budget(args: argparse.Namespace) -> None:
    budget = args.budget_hours
    if budget is not None and not 0 < budget < math.inf:
        raise KdepError(
            f"--budget-hours is {budget:g}",
            expected="a positive number",
            fix="correct --budget-hours",
        )
    if args.fit_budget and budget is None:
        raise KdepError("--fit-budget needs --budget-hours", fix="add --budget-hours H")
    for name in ("device_rate", "measure_throughput", "count_flops"):
        if getattr(args, name) and not args.dry_run and budget is None:
            option = "--" + name.replace("_", "-")
            raise KdepError(
                f"{option} works only with --dry-run or --budget-hours", fix="add one of them"
            )


def disk_fault(e: OSError) -> KdepError:
    """A full or broken disk under the work dir or the results, as a sentence."""
    return KdepError(
        f"a file could not be written or read ({e})",
        fix="free disk space or inodes (see df -h and df -i), or correct the folder's "
        "permissions, then rerun the same command; finished stages are kept",
    )


def _list(folder: str) -> int:
    from kdep_bench.suite.config import CONFIGS, FOLDERS, names

    kind = {folder: kind for kind, folder in FOLDERS.items()}[folder]
    if kind == "method":
        print("\n".join(method_table()))
        return 0
    for name in names(kind):
        path = CONFIGS / FOLDERS[kind] / f"{name}.py"
        print(f"{name:24s} {_first_line(path)}")
    return 0


def method_table() -> list[str]:
    """Lines of `--list methods`: name, family, needs, label policy and source in columns."""
    from kdep_bench.suite.config import load_config, names
    from kdep_bench.suite.schema import label_policy, method_needs

    rows = [("METHOD", "FAMILY", "NEEDS", "LABELS", "SOURCE")]
    for name in names("method"):
        try:
            m = load_config("method", name)
        except KdepError as e:
            rows.append((name, "-", "-", "-", f"(cannot be read: {e.problem})"))
            continue
        needs = ", ".join(sorted(method_needs(m))) or "-"
        source = m.get("source", "") + (" (re-implementation)" if m.get("reconstruction") else "")
        rows.append((name, m.get("family") or "-", needs, label_policy(m), source))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    layout = "  ".join(f"{{:{w}}}" for w in widths) + "  {}"
    return [layout.format(*row) for row in rows]


def _first_line(path: Path) -> str:
    import ast

    try:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    except (SyntaxError, UnicodeDecodeError):
        return "(cannot be read)"
    return docstring.partition("\n")[0]


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    from kdep_bench.engine import ddp, local_pool, state
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.config import REPO, load_suite
    from kdep_bench.suite.image_counts import check_counts
    from kdep_bench.suite.plan import build_plan

    rank, processes = ddp.leave_launcher()
    if rank:
        print(f"rank {rank}: rank 0 runs the suite and starts the processes of its stages")
        return 0
    suite = ddp.spread(load_suite(args.suite), processes)
    work = args.work_dir or REPO / "work_dirs"
    results = args.results_dir or REPO / "results" / suite.name
    if args.rehearse:
        from kdep_bench.suite.rehearse import rehearsed

        suite = rehearsed(suite)
        work = args.work_dir or REPO / "work_dirs" / "rehearsal"
        results = args.results_dir or work / "results" / suite.name
    plan = build_plan(suite)  # a fault of the suite is told before its data are read
    check_counts(suite)
    work, results = work.absolute(), results.absolute()
    read, lines = data_identity.with_content(suite, work, verify=args.verify, say=_say)
    if read != suite:
        suite, plan = read, build_plan(read)
    for line in lines:
        print(line)
    selected = select.select_stages(plan, args.only)
    hits = [select.matcher(f) for f in args.force]
    for pattern, hit in zip(args.force, hits, strict=True):
        if not any(hit(s.id) for s in plan.stages.values()):
            raise KdepError(
                f"--force {pattern!r} matches no stage",
                expected="part of a stage id",
                fix="list the ids with --dry-run",
            )
    known = state.statuses(
        plan, work, selected, force=lambda s: any(h(s.id) for h in hits), verify=args.verify
    )
    if not args.dry_run:
        for line in _edited(plan, known):
            print(line)
    if args.dry_run or args.budget_hours is not None:
        known, forecast_lines, refusal = _forecast(args, plan, known, work)
        if args.dry_run:
            if args.rehearse:
                from kdep_bench.suite.rehearse import changes

                print(changes())
            print(explain(plan, known, work))
        for line in forecast_lines:
            print(line)
        if refusal is not None:
            raise refusal
        if args.dry_run:
            return 0
    if args.write_plan:
        from kdep_bench.engine.stage import write_plan

        write_plan(args.write_plan, plan.name, plan.stages.values())
        return 0
    from kdep_bench.engine.progress import view_for

    gpus = machine.find_gpus() if args.gpus is None else tuple(g for g in args.gpus.split(",") if g)
    view = view_for(sys.stdout, args.plain)
    options = dict(jobs=args.jobs, gpus=gpus, fail_fast=args.fail_fast, retry=args.retry)
    if args.executor == "local":
        outcome = local_pool.run_plan(plan, work, known, local_pool.PoolOptions(**options), view)
    else:
        from kdep_bench.engine import cluster

        extra_arguments = tuple(shlex.split(args.snakemake))
        options |= dict(without_gpus=args.gpus == "")
        cluster_options = cluster.ClusterOptions(
            executor=args.executor, extra_arguments=extra_arguments, **options
        )
        outcome = cluster.run_plan(plan, work, known, cluster_options, view)
    command = "python tools/run_suite.py " + shlex.join(arguments)
    code = summarise(plan, known, outcome, command)
    from kdep_bench.engine.collect import collect

    counts = collect(suite, plan, work, results, outcome.failed, rebuild=args.report)
    print(
        f"records: {counts['ok']} ok, {counts['failed']} failed, {counts['missing']} missing, "
        f"{counts['written']} new; tables in {results}"
    )
    return code


def _edited(plan: Plan, known: Mapping[str, Status]) -> list[str]:
    """A line for each data set that changed since it was prepared: what, and what runs for it."""
    lines = []
    for stage_id, status in known.items():
        if status.run and status.why.startswith("data changed"):
            consumers = plan.downstream([stage_id]) - {stage_id}
            reruns = sum(known[i].run for i in consumers if i in known)
            lines.append(f"{stage_id}: {status.why}; {reruns} downstream stage(s) will be rerun")
    return lines


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _forecast(
    args: argparse.Namespace, plan: Plan, known: dict[str, Status], work: Path
) -> tuple[dict[str, Status], list[str], KdepError | None]:
    """(stages, with --fit-budget those that fit; lines to print; why nothing may run)."""
    from kdep_bench.engine import state
    from kdep_bench.forecast import gpu_hours, rates
    from kdep_bench.forecast.costs import Costs
    from kdep_bench.forecast.work import Forecast, read_counts, table

    todo = {i for i, s in known.items() if s.run}
    requested = args.device_rate or args.measure_throughput or args.count_flops
    requested = requested or args.budget_hours is not None
    if not todo or (args.rehearse and not requested):  # a rehearsal's networks are nobody's
        return known, [], None
    if args.count_flops:
        rates.count_networks(args.suite, work, args.rehearse)
    counts = read_counts(work)
    forecast = Forecast(plan, counts, (s.record for s in known.values() if s.record))
    budget, hours = args.budget_hours, None
    if args.device_rate:
        hours = rates.at_rate(plan, forecast, rates.stated_rate(args.device_rate), todo)
    elif args.measure_throughput:
        probed = rates.measured_rate(rates.probe_networks(args.suite, args.rehearse), counts)
        hours = rates.at_rate(plan, forecast, probed, todo)
    elif budget is not None:
        hours = rates.from_finished(plan, Costs(plan, state.records(work, known)), todo)
    if hours is None or budget is None:
        return known, table(plan, forecast, [i for i in known if i in todo], hours), None
    fitted = gpu_hours.fit(plan, known, todo, hours.by_stage, budget)
    if args.fit_budget:
        chosen = plan.upstream(c for comparison in fitted.taken for c in comparison.runs)
        known = {i: s for i, s in known.items() if i in chosen}
    lines = table(plan, forecast, [i for i in known if i in todo], hours)
    if args.fit_budget:
        return known, lines + fitted.summary(budget), None
    return known, lines, gpu_hours.refusal(fitted, hours, budget)


def explain(plan: Plan, known: Mapping[str, Status], work: Path) -> str:
    """The text of --dry-run: every stage, done or run, and why."""
    from kdep_bench.engine import state
    from kdep_bench.engine.local_pool import chain_costs
    from kdep_bench.engine.progress import duration
    from kdep_bench.forecast.costs import Costs

    todo = {i for i, s in known.items() if s.run}
    costs = Costs(plan, state.records(work, known) if todo else [])
    cost = {i: seconds for i in todo if (seconds := costs.measured(plan.stages[i])) is not None}
    lines = []
    for stage_id, status in known.items():
        action = "run " if status.run else "done" if status.done else "skip"
        reason = "" if status.why == "done" else f"  {status.why}"
        estimate = f"  ~{duration(cost[stage_id])}" if stage_id in cost else ""
        lines.append(f"{action}  {stage_id}{estimate}{reason}")
    done = sum(s.done for s in known.values())
    if len(cost) == len(todo):
        chain = chain_costs(plan, todo, cost)
        time = f"{duration(sum(cost.values()))} of estimated work, longest chain "
        time += duration(max(chain.values(), default=0.0))
    else:
        time = f"no timing available for {len(todo) - len(cost)} of them"
    lines.append(
        f"{plan.name}: {len(known)} stages, {done} done, {len(todo)} to run, {time}; "
        f"{len(plan.runs)} transfer runs"
    )
    return "\n".join(lines)


def summarise(plan: Plan, known: Mapping[str, Status], outcome: Outcome, command: str) -> int:
    """Prints how a run ended; returns its exit code."""
    finished = [*outcome.ran, *outcome.elsewhere]
    done = sum(s.done for s in known.values()) + len([i for i in finished if not known[i].done])
    for stage_id in outcome.failed:  # why was printed when it failed, and stands in its log
        print(f"failed: {stage_id}", file=sys.stderr)
    if outcome.skipped:
        print(f"{len(outcome.skipped)} downstream stage(s) skipped", file=sys.stderr)
    n_elsewhere = len(outcome.elsewhere)
    meanwhile = f"{n_elsewhere} finished by another process, " if n_elsewhere else ""
    print(
        f"{plan.name}: {len(outcome.ran)} finished in this run, {meanwhile}"
        f"{done} of {len(known)} stages are done"
    )
    if outcome.signal:
        print(f"interrupted; finished stages are kept. Resume with: {command}", file=sys.stderr)
        return 128 + outcome.signal
    return 0 if outcome.ok else 1
