"""A real Slurm on one machine, for tests: munged, slurmctld and several slurmd, with fake GPUs.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge. `python slurm.py` starts a
cluster and stops it when interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

APT = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "setpriv")
# Options with which Snakemake's Slurm plugin reads the states of jobs from squeue, because sacct
# needs slurmdbd, and every second instead of every 40 s.
QUICK = (
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--seconds-between-status-checks", "1"),
)
ETC, HOSTS, MARK = Path("/etc/slurm"), Path("/etc/hosts"), "# kdep_bench test cluster"
PREFIX = "kdep_slurm."  # of the folder with the configuration, logs and pid files


def missing_requirement() -> str:
    """Why no cluster can be started on this machine; '' if one can be started."""
    missing = [p for p in PROGRAMS if shutil.which(p) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install {' '.join(APT)}"
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    if (ETC / "slurm.conf").exists():
        return f"{ETC}/slurm.conf exists: this machine has, or is in, a Slurm of its own"
    return ""


def sweep() -> None:
    """Removes the files of a killed test cluster from this machine; a running cluster stays."""
    folders = {link.readlink().parent for link in ETC.glob("*.conf") if link.is_symlink()}
    for folder in {r for r in folders if r.name.startswith(PREFIX)}:
        pids = [*folder.glob("*.pid"), *folder.glob("munge/*.pid")]
        if not any(Path(f"/proc/{pid.read_text().strip()}").exists() for pid in pids):
            delete_folder(folder)


def delete_folder(folder: Path) -> None:
    """Deletes a cluster's folder, the links to it in /etc/slurm and its lines in /etc/hosts."""
    for link in ETC.glob("*.conf"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    lines = HOSTS.read_text().splitlines(keepends=True)
    HOSTS.write_text("".join(line for line in lines if MARK not in line))
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float, name: str) -> None:
    """Polls until `condition()` is true; raises TimeoutError with `name` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: not within {seconds:g} s")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of this machine that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class Slurm:
    """A cluster that runs within `with Slurm() as slurm:`; it sets SLURM_CONF of this process.

    Args:
        nodes: number of nodes.
        gpus: GPUs per node.
        cpus: cores per node.
        memory: memory per node, in MB.
    """

    def __init__(self, nodes: int = 3, gpus: int = 2, cpus: int = 8, memory: int = 32000) -> None:
        self.names = [f"kdepn{i}" for i in range(1, nodes + 1)]
        self.gpus, self.cpus, self.memory = gpus, cpus, memory

    # --- start and stop ---

    def __enter__(self) -> Slurm:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o755)
        try:
            self.configure()
            self.start_munge()
            self.start_daemon("slurmctld", "-f", str(self.conf))
            wait_for(lambda: "UP" in self.run("scontrol", "ping"), 120, "slurmctld")
            for name in self.names:
                self.node_up(name)
            wait_for(lambda: self.count_idle() == len(self.names), 180, "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "conf"):
            # The nodes are stopped even if the controller does not answer or a job does not end.
            with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
                self.run("scancel", "--user=root")
                wait_for(lambda: not self.run("squeue", "-h"), 20, "jobs to end")
        for name in self.names:
            self.node_down(name)
        for pid in [*self.folder.glob("*.pid"), *self.folder.glob("munge/*.pid")]:
            end_process(int(pid.read_text()))
        os.environ.pop("SLURM_CONF", None)
        delete_folder(self.folder)

    def configure(self) -> None:
        """Writes slurm.conf, gres.conf and cgroup.conf, and links them into /etc/slurm."""
        r, host = self.folder, socket.gethostname().partition(".")[0]  # r: root of all files
        control, *ports = free_ports(1 + len(self.names))
        for part in ("ctld", "log", "gpu", *(f"spool/{n}" for n in self.names)):
            (r / part).mkdir(parents=True)
        for i in range(self.gpus):  # gres.conf needs device files: copies of /dev/null
            os.mknod(r / f"gpu/{i}", 0o20666, os.makedev(1, 3))
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs={self.cpus} "
            f"RealMemory={self.memory} Gres=gpu:{self.gpus} State=UNKNOWN"
            for n, p in zip(self.names, ports, strict=True)
        )
        (r / "slurm.conf").write_text(
            f"""
ClusterName=kdep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# a requeued job is refused as a replay until its old credentials have expired
AuthInfo=socket={r}/munge/sock,cred_expire=5
StateSaveLocation={r}/ctld
SlurmctldPidFile={r}/slurmctld.pid
SlurmctldLogFile={r}/log/slurmctld.log
SlurmdPidFile={r}/slurmd-%n.pid
SlurmdLogFile={r}/log/slurmd-%n.log
SlurmdSpoolDir={r}/spool/%n
# no cgroups: processes are found by their parents, memory by polling /proc
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# use the cores and memory of this file, not those of the machine
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
InactiveLimit=0
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
DefMemPerCPU=500
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=15
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
        )
        gres = [f"NodeName={n} Name=gpu File={r}/gpu/[0-{self.gpus - 1}]" for n in self.names]
        (r / "gres.conf").write_text("AutoDetect=off\n" + "\n".join(gres) + "\n")
        (r / "cgroup.conf").write_text("ConstrainRAMSpace=no\n")
        # Snakemake's jobs do not inherit SLURM_CONF: srun reads its default folder, /etc/slurm.
        ETC.mkdir(exist_ok=True)
        for conf in r.glob("*.conf"):
            (ETC / conf.name).symlink_to(conf)
        with open(HOSTS, "a") as file:  # a job's nodes reach each other by name
            file.writelines(f"127.0.0.1 {n} {MARK}\n" for n in self.names)
        self.conf = r / "slurm.conf"
        os.environ["SLURM_CONF"] = str(self.conf)

    def start_munge(self) -> None:
        """Starts munged with a new key, as its own user."""
        home = self.folder / "munge"
        home.mkdir(mode=0o755)
        (home / "key").write_bytes(os.urandom(128))
        (home / "key").chmod(0o400)
        for path in (home, home / "key"):
            shutil.chown(path, "munge", "munge")
        self.start_daemon(
            *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"),
            *(f"--key-file={home}/key", f"--socket={home}/sock", f"--seed-file={home}/seed"),
            *(f"--pid-file={home}/munged.pid", f"--log-file={home}/log", "--num-threads=2"),
        )
        wait_for(lambda: (home / "munged.pid").exists(), 60, "munged")

    def start_daemon(self, *command: str) -> None:
        """Starts a program that becomes a daemon and writes its output to a log file."""
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PATH": path}
        with open(self.folder / "daemons.log", "ab") as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, check=True
            )

    # --- nodes ---

    def node_up(self, name: str) -> None:
        """Starts the slurmd of a node."""
        self.start_daemon("slurmd", "-f", str(self.conf), "-N", name)

    def node_down(self, name: str) -> None:
        """Kills all processes of a node at once, as a power failure would."""
        pid_file = self.folder / f"slurmd-{name}.pid"
        pids = [int(pid_file.read_text())] if pid_file.exists() else []
        log = str(self.folder / f"log/slurmd-{name}.log")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mark = f"SLURMD_NODENAME={name}".encode()
                is_job = mark in (process / "environ").read_bytes().split(b"\0")
                is_step_daemon = (process / "comm").read_text().startswith("slurmstepd")
                if is_job or (
                    is_step_daemon and log in [os.readlink(f) for f in (process / "fd").iterdir()]
                ):
                    pids.append(int(process.name))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pid_file.unlink(missing_ok=True)
        # slurmd would not launch a requeued job next to the spool files of its first run.
        shutil.rmtree(self.folder / "spool" / name, ignore_errors=True)
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)

    def count_idle(self) -> int:
        """The number of idle nodes."""
        return len(set(self.run("sinfo", "-hN", "-t", "idle", "-o", "%N").split()))

    # --- jobs ---

    def run(self, *command: str) -> str:
        """The output of a command; a failure is not an error."""
        completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return completed.stdout.strip()

    def jobs(self, state: str = "") -> list[str]:
        """Ids of the jobs in the queue, or of those in a state."""
        return self.run("squeue", "-h", "-o", "%i", *(["-t", state] if state else [])).split()

    def job(self, job_id: str) -> dict[str, str]:
        """All fields that scontrol shows of a job."""
        shown = self.run("scontrol", "show", "job", "-o", job_id)
        return dict(re.findall(r"(\w+)=(\S+)", shown))


def end_process(pid: int) -> None:
    """Sends SIGTERM and waits up to 10 s for the end of the process."""
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, str(pid))


if __name__ == "__main__":
    sweep()
    if missing_requirement():
        raise SystemExit(missing_requirement())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Slurm() as slurm:
        print(f"export SLURM_CONF={slurm.conf}", flush=True)
        signal.pause()
