"""`tools/run_suite.py`: plan, explain, run, collect. Torch is imported in the stages only."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdep_bench.cli import run_suite_output as output
from kdep_bench.cli.run_suite_arguments import check_arguments, parser, selected_gpus
from kdep_bench.engine import select
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan
    from kdep_bench.suite.schema import Suite


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. A KdepError becomes one sentence and 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    p = parser()
    args = p.parse_args(arguments)
    try:
        if args.list:
            output.list_configs(args.list)
            return 0
        if not args.suite:
            p.error("a suite is needed (see --list suites)")
        check_arguments(args)
        return _run(args, arguments)
    except KdepError as e:
        print(f"run_suite: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # an OSError, but not of a disk
        raise
    except OSError as e:
        print(f"run_suite: {output.disk_fault(e)}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    from kdep_bench.engine import ddp

    rank, processes = ddp.leave_launcher()
    if rank:
        print(f"rank {rank}: rank 0 runs the suite and starts the processes of its stages")
        return 0
    gpus = selected_gpus(args)
    suite, work, results = _load(args, processes)
    suite, plan = _plan(args, suite, work)
    known = _statuses(args, plan, work)
    if args.executor == "snakemake-local":
        _check_stage_gpus(plan, known, gpus)
    if not args.dry_run:
        for line in output.changed_data(plan, known):
            print(line)
    if args.dry_run or args.budget_hours is not None:
        known = _print_forecast(args, plan, known, work)
    if args.dry_run:
        return 0
    if args.write_plan:
        from kdep_bench.engine.stage import write_plan

        write_plan(args.write_plan, plan.name, plan.stages.values())
        return 0
    from kdep_bench.engine.collect import check_folder

    check_folder(results, suite.name)
    outcome = _execute(args, plan, work, known, gpus)
    command = "python tools/run_suite.py " + shlex.join(arguments)
    code = output.summarise(plan, known, outcome, command)
    _collect(args, suite, plan, work, results, outcome)
    return code


def _load(args: argparse.Namespace, processes: int) -> tuple[Suite, Path, Path]:
    """The suite, with --rehearse its rehearsal; absolute paths of its work dir and results."""
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


def _plan(args: argparse.Namespace, suite: Suite, work: Path) -> tuple[Suite, Plan]:
    """The suite with the content of its data, which is part of stage ids, and its plan."""
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.image_counts import check_counts
    from kdep_bench.suite.plan import build_plan

    plan = build_plan(suite)  # reports faults of the suite before its data are read
    check_counts(suite)
    with_content, lines = data_identity.with_content(
        suite, work, verify=args.verify, show_message=_log
    )
    for line in lines:
        print(line)
    if with_content == suite:
        return suite, plan
    return with_content, build_plan(with_content)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _statuses(args: argparse.Namespace, plan: Plan, work: Path) -> dict[str, Status]:
    """The stages of --only, with whether each must run; --force makes stages run again."""
    from kdep_bench.engine import state

    selected = select.select_stages(plan, args.only)
    matchers = [select.matcher(pattern) for pattern in args.force]
    for pattern, matches in zip(args.force, matchers, strict=True):
        if not any(matches(s.id) for s in plan.stages.values()):
            raise KdepError(
                f"--force {pattern!r} matches no stage",
                expected="part of a stage id",
                fix="list the ids with --dry-run",
            )
    return state.statuses(
        plan,
        work,
        selected,
        force=lambda s: any(matches(s.id) for matches in matchers),
        verify=args.verify,
    )


def _check_stage_gpus(plan: Plan, known: dict[str, Status], gpus: tuple[str, ...]) -> None:
    """Raises KdepError for a stage that would wait for more GPUs than there are.

    The local pool gives it those that there are; Snakemake would never start it.
    """
    for stage_id, status in known.items():
        stage = plan.stages[stage_id]
        if status.run and gpus and stage.gpus > len(gpus):
            raise KdepError(
                f"runtime.gpus of the suite sets {stage.gpus} GPUs per {stage.kind} stage, but "
                f"only {len(gpus)} can be used (GPU {', '.join(gpus)})",
                fix=f"lower runtime.gpus[{stage.kind!r}] in the suite, or use --executor local",
            )


def _print_forecast(
    args: argparse.Namespace, plan: Plan, known: dict[str, Status], work: Path
) -> dict[str, Status]:
    """Prints the plan of a dry run, and the forecast; returns the stages that may run.

    Raises:
        KdepError: the run would take more than --budget-hours.
    """
    known, lines, refusal = _forecast(args, plan, known, work)
    if args.dry_run:
        if args.rehearse:
            from kdep_bench.suite.rehearse import changes

            print(changes())
        print(output.explain(plan, known, work))
    for line in lines:
        print(line)
    if refusal is not None:
        raise refusal
    return known


def _forecast(
    args: argparse.Namespace, plan: Plan, known: dict[str, Status], work: Path
) -> tuple[dict[str, Status], list[str], KdepError | None]:
    """(stages, with --fit-budget those that fit; lines to print; error above the budget)."""
    from kdep_bench.engine import state
    from kdep_bench.forecast import gpu_hours, rates
    from kdep_bench.forecast.costs import Costs
    from kdep_bench.forecast.work import Forecast, read_counts, table

    todo = {i for i, s in known.items() if s.run}
    requested = args.device_rate or args.measure_throughput or args.count_flops
    requested = requested or args.budget_hours is not None
    if not todo or (args.rehearse and not requested):  # a rehearsal has networks of its own
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
        chosen |= plan.upstream(p.id for p in plan.probes if p.chain["export"] in chosen)
        known = {i: s for i, s in known.items() if i in chosen}
    lines = table(plan, forecast, [i for i in known if i in todo], hours)
    if args.fit_budget:
        return known, lines + fitted.summary(budget), None
    return known, lines, gpu_hours.refusal(fitted, hours, budget)


def _execute(
    args: argparse.Namespace,
    plan: Plan,
    work: Path,
    known: dict[str, Status],
    gpus: tuple[str, ...],
) -> Outcome:
    """Runs the stages in the local pool, or through Snakemake."""
    from kdep_bench.engine import local_pool
    from kdep_bench.engine.progress import view_for

    view = view_for(sys.stdout, args.plain)
    options = dict(jobs=args.jobs, gpus=gpus, fail_fast=args.fail_fast, retry=args.retry)
    if args.executor == "local":
        return local_pool.run_plan(plan, work, known, local_pool.PoolOptions(**options), view)
    from kdep_bench.engine import cluster

    cluster_options = cluster.ClusterOptions(
        executor=args.executor,
        without_gpus=args.gpus == "",
        extra_arguments=tuple(shlex.split(args.snakemake)),
        **options,
    )
    return cluster.run_plan(plan, work, known, cluster_options, view)


def _collect(
    args: argparse.Namespace,
    suite: Suite,
    plan: Plan,
    work: Path,
    results: Path,
    outcome: Outcome,
) -> None:
    """Writes the records and tables, and prints how many; without tasks, the backbones' files."""
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
        f"{counts['written']} new; tables in {results}"
    )
    if probes := counts.get("probes"):
        print(
            f"probes: {probes['ok']} ok, {probes['failed']} failed, {probes['missing']} missing, "
            f"{probes['written']} new"
        )
