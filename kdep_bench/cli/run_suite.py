"""The command `kdep-bench run` (tools/run_suite.py): plans a suite, runs it, collects the results.

Torch is imported only in the processes of stages.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kdep_bench.cli import run_suite_output as output
from kdep_bench.cli.run_suite_arguments import check_arguments, parser, selected_gpus
from kdep_bench.engine import select
from kdep_bench.errors import KdepError, file_fault
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan
    from kdep_bench.suite.schema import Suite


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    p = parser()
    args = p.parse_args(arguments)
    try:
        if args.list:
            if args.suite:
                raise KdepError(
                    f"the list of {args.list} takes no name, but got {args.suite!r}",
                    fix=f"remove {args.suite!r}; to search the list, pipe it into grep",
                )
            output.list_configs(args.list, args.json)
            return 0
        if not args.suite:
            p.error("no suite was given. Fix: add its name (kdep-bench suites lists them) or file.")
        check_arguments(args)
        return _run(args, arguments)
    except KdepError as e:
        print(f"kdep-bench run: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # an OSError that is not about a disk
        raise
    except OSError as e:
        print(f"kdep-bench run: {file_fault(e)}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Plans and runs the suite; returns the exit code. `arguments`: the command line."""
    from kdep_bench.engine import ddp

    rank, processes = ddp.leave_launcher()
    if rank:  # torchrun started this program once per rank
        print(f"rank {rank} exits: rank 0 runs the suite and starts the processes of its stages")
        return 0
    gpus = selected_gpus(args)
    suite, work, results = _load(args, processes)
    message_stream = sys.stderr if args.json else sys.stdout
    suite, plan = plan_with_content(suite, work, args.verify, message_stream)
    statuses = _statuses(args, plan, work)
    if args.executor == "snakemake-local":
        _check_stage_gpus(plan, statuses, gpus)
    if not args.dry_run:
        for line in output.changed_data(plan, statuses):
            print(line)
    if args.dry_run or args.budget_hours is not None:
        statuses = _print_forecast(args, plan, statuses, work)
    if args.dry_run:
        return 0
    if args.write_plan:
        from kdep_bench.engine.stage import write_plan

        write_plan(args.write_plan, plan.name, plan.stages.values())
        return 0
    from kdep_bench.engine.collect import check_folder

    check_folder(results, suite.name)
    outcome = _execute(args, plan, work, statuses, gpus)
    code = output.summarise(plan, statuses, outcome, _command(arguments))
    _collect(args, suite, plan, work, results, outcome)
    return code


def _command(arguments: Sequence[str]) -> str:
    """The shell command that started this program with `arguments`."""
    script = sys.argv[0]
    is_tool = Path(script).name == "run_suite.py"
    program = f"python {shlex.quote(script)}" if is_tool else "kdep-bench run"
    return f"{program} {shlex.join(arguments)}"


def _load(args: argparse.Namespace, processes: int) -> tuple[Suite, Path, Path]:
    """Reads the suite.

    `processes`: processes per stage, if this program was started by torchrun.

    Returns:
        (the suite, or with --rehearse its rehearsal; the work dir; the results folder).
    """
    from kdep_bench.engine import ddp
    from kdep_bench.suite.config import load_suite

    suite = ddp.spread(load_suite(args.suite), processes)
    work = args.work_dir or OUTPUT / "work_dirs"
    results = args.results_dir or OUTPUT / "results" / suite.name
    if args.rehearse:
        from kdep_bench.suite.rehearse import rehearsed

        suite = rehearsed(suite)
        work = args.work_dir or OUTPUT / "work_dirs" / "rehearsal"
        results = args.results_dir or work / "results" / suite.name
    return suite, work.absolute(), results.absolute()


def plan_with_content(suite: Suite, work: Path, verify: bool, out: TextIO) -> tuple[Suite, Plan]:
    """Plans a suite after hashing its data; the hashes are part of stage ids.

    Args:
        suite: from `load_suite`.
        work: the work dir.
        verify: whether to hash all data again.
        out: receives a line for each data set that was read.

    Returns:
        (the suite with the hashes, its plan).
    """
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.image_counts import check_counts
    from kdep_bench.suite.plan import build_plan

    plan = build_plan(suite)  # first without hashes: reading the data can take long
    check_counts(suite)
    with_content, lines = data_identity.with_content(suite, work, verify=verify, show_message=_log)
    for line in lines:
        print(line, file=out)
    if with_content == suite:
        return suite, plan
    return with_content, build_plan(with_content)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _statuses(args: argparse.Namespace, plan: Plan, work: Path) -> dict[str, Status]:
    """The status of every stage that --only selects; --force makes stages run again."""
    from kdep_bench.engine import state

    selected = select.select_stages(plan, args.only)
    matchers = [select.matcher(pattern) for pattern in args.force]
    for pattern, matches in zip(args.force, matchers, strict=True):
        if not any(matches(s.id) for s in plan.stages.values()):
            raise KdepError(
                f"--force {pattern!r} matches no stage",
                expected="part of a stage id",
                fix=select.did_you_mean(pattern, plan.stages)
                + "list the ids: --dry-run without --force",
            )
    return state.statuses(
        plan,
        work,
        selected,
        force=lambda s: any(matches(s.id) for matches in matchers),
        verify=args.verify,
    )


def _check_stage_gpus(plan: Plan, statuses: dict[str, Status], gpus: tuple[str, ...]) -> None:
    """Raises KdepError for a stage that needs more GPUs than there are, if there is one at all.

    Snakemake would never start such a stage. (The local pool would start it with fewer GPUs.)
    """
    for stage_id, status in statuses.items():
        stage = plan.stages[stage_id]
        if status.run and gpus and stage.gpus > len(gpus):
            raise KdepError(
                f"runtime.gpus of the suite sets {stage.gpus} GPUs per {stage.kind} stage, but "
                f"only {len(gpus)} can be used (GPU {', '.join(gpus)})",
                fix=f"lower runtime.gpus[{stage.kind!r}] in the suite, or use --executor local",
            )


def _print_forecast(
    args: argparse.Namespace, plan: Plan, statuses: dict[str, Status], work: Path
) -> dict[str, Status]:
    """Prints the forecast, and in a dry run the plan; returns the statuses of `_forecast`.

    Raises:
        KdepError: the run would take more than --budget-hours.
    """
    statuses, lines, error = _forecast(args, plan, statuses, work)
    if args.dry_run:
        if args.json:
            print(output.explain_json(plan, statuses, work, lines))
            lines = []
        else:
            if args.rehearse:
                from kdep_bench.suite.rehearse import changes

                print(changes())
            print(output.explain(plan, statuses, work))
    for line in lines:
        print(line)
    if error is not None:
        raise error
    return statuses


def _forecast(
    args: argparse.Namespace, plan: Plan, statuses: dict[str, Status], work: Path
) -> tuple[dict[str, Status], list[str], KdepError | None]:
    """Estimates the resources of the run.

    Returns:
        (statuses of the stages that may run, with --fit-budget only of stages that fit the budget;
        lines to print; the error if the run does not fit the budget, else None).
    """
    from kdep_bench.engine import state
    from kdep_bench.forecast import gpu_hours, rates
    from kdep_bench.forecast.costs import Costs
    from kdep_bench.forecast.work import Forecast, read_counts, table

    todo = {stage_id for stage_id, status in statuses.items() if status.run}
    is_requested = bool(args.device_rate or args.measure_throughput or args.count_flops)
    is_requested = is_requested or args.budget_hours is not None
    # The networks of a rehearsal are usually not counted, so its forecast would be empty.
    if not todo or (args.rehearse and not is_requested):
        return statuses, [], None
    if args.count_flops:
        rates.count_networks(args.suite, work, args.rehearse)
    counts = read_counts(work)
    forecast = Forecast(plan, counts, (s.record for s in statuses.values() if s.record))
    budget, hours = args.budget_hours, None
    if args.device_rate:
        hours = rates.at_rate(plan, forecast, rates.stated_rate(args.device_rate), todo)
    elif args.measure_throughput:
        measured = rates.measured_rate(rates.measure_networks(args.suite, args.rehearse), counts)
        hours = rates.at_rate(plan, forecast, measured, todo)
    elif budget is not None:
        hours = rates.from_finished(plan, Costs(plan, state.records(work, statuses)), todo)
    if hours is None or budget is None:
        return statuses, table(plan, forecast, [i for i in statuses if i in todo], hours), None
    fitted = gpu_hours.fit(plan, statuses, todo, hours.by_stage, budget)
    if args.fit_budget:
        selected = plan.upstream(run for comparison in fitted.selected for run in comparison.runs)
        selected |= plan.upstream(p.id for p in plan.probes if p.chain["export"] in selected)
        statuses = {i: status for i, status in statuses.items() if i in selected}
    lines = table(plan, forecast, [i for i in statuses if i in todo], hours)
    if args.fit_budget:
        return statuses, lines + fitted.summary(budget), None
    return statuses, lines, gpu_hours.budget_error(fitted, hours, budget)


def _execute(
    args: argparse.Namespace,
    plan: Plan,
    work: Path,
    statuses: dict[str, Status],
    gpus: tuple[str, ...],
) -> Outcome:
    """Runs the stages in the local pool, or through Snakemake."""
    from kdep_bench.engine import local_pool
    from kdep_bench.engine.progress import view_for

    view = view_for(sys.stdout, args.plain)
    options = dict(jobs=args.jobs, gpus=gpus, fail_fast=args.fail_fast, retry=args.retry)
    if args.executor == "local":
        return local_pool.run_plan(plan, work, statuses, local_pool.PoolOptions(**options), view)
    from kdep_bench.engine import cluster

    cluster_options = cluster.ClusterOptions(
        executor=args.executor,
        without_gpus=args.gpus == "",
        extra_arguments=tuple(shlex.split(args.snakemake)),
        **options,
    )
    return cluster.run_plan(plan, work, statuses, cluster_options, view)


def _collect(
    args: argparse.Namespace,
    suite: Suite,
    plan: Plan,
    work: Path,
    results: Path,
    outcome: Outcome,
) -> None:
    """Writes the records and tables, and prints their numbers.

    A suite without tasks and probes has no records; the paths of its backbones are printed.
    """
    from kdep_bench.engine import state
    from kdep_bench.engine.collect import collect

    if not plan.runs and not plan.probes:
        for stage in plan.stages.values():
            if stage.kind == "export" and state.finished(stage, work)[0] is not None:
                print(f"backbone: {state.folder(work, stage.id) / 'backbone.pth'}")
        print("the suite has no tasks, so there are no scores")
        return
    counts = collect(suite, plan, work, results, outcome.failed, rebuild=args.report)
    print(
        f"records: {counts['ok']} ok, {counts['failed']} failed, {counts['missing']} missing, "
        f"{counts['written']} written; tables in {results}"
    )
    if moved := counts.get("superseded"):
        print(f"{moved} records of runs that the suite does not plan are in {results}/superseded")
    if probes := counts.get("probes"):
        print(
            f"probes: {probes['ok']} ok, {probes['failed']} failed, {probes['missing']} missing, "
            f"{probes['written']} written"
        )
