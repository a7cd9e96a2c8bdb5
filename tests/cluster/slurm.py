"""A real Slurm on one machine, for tests: munged, slurmctld and several slurmd, with fake GPUs.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge. `python slurm.py` starts one and
holds it until it is interrupted.
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
# Without slurmdbd there is no sacct; and a test cannot wait for the plugin's 40 s.
QUICK = (
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--seconds-between-status-checks", "1"),
)
ETC, HOSTS, MARK = Path("/etc/slurm"), Path("/etc/hosts"), "# kdep_bench test cluster"
ROOM = "kdep_slurm."


def why_not() -> str:
    """Why no cluster can be started here; '' when one can."""
    missing = [p for p in PROGRAMS if shutil.which(p) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install {' '.join(APT)}"
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    if (ETC / "slurm.conf").exists():
        return f"{ETC}/slurm.conf exists: this machine has, or is in, a Slurm of its own"
    return ""


def sweep() -> None:
    """Removes what a test cluster that was killed left on this machine; a running one stays."""
    folders = {link.readlink().parent for link in ETC.glob("*.conf") if link.is_symlink()}
    for room in {r for r in folders if r.name.startswith(ROOM)}:
        pids = [*room.glob("*.pid"), *room.glob("munge/*.pid")]
        if not any(Path(f"/proc/{pid.read_text().strip()}").exists() for pid in pids):
            _forget(room)


def _forget(room: Path) -> None:
    for link in ETC.glob("*.conf"):
        if link.is_symlink() and link.readlink().is_relative_to(room):
            link.unlink()
    lines = HOSTS.read_text().splitlines(keepends=True)
    HOSTS.write_text("".join(line for line in lines if MARK not in line))
    shutil.rmtree(room, ignore_errors=True)


def wait_for(what: Callable[[], object], seconds: float, name: str) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: not within {seconds:g} s")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class Slurm:
    """`with Slurm() as slurm:`; the environment of this process then points at it."""

    def __init__(self, nodes: int = 3, gpus: int = 2, cpus: int = 8, memory: int = 32000) -> None:
        self.names = [f"kdepn{i}" for i in range(1, nodes + 1)]
        self.gpus, self.cpus, self.memory = gpus, cpus, memory

    # --- up and down ---

    def __enter__(self) -> Slurm:
        self.room = Path(tempfile.mkdtemp(prefix=ROOM))
        self.room.chmod(0o755)
        try:
            self._configure()
            self._munge()
            self._daemon("slurmctld", "-f", str(self.conf))
            wait_for(lambda: "UP" in self.ask("scontrol", "ping"), 120, "slurmctld")
            for name in self.names:
                self.node_up(name)
            wait_for(lambda: self.idle() == len(self.names), 180, "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "conf"):
            with contextlib.suppress(subprocess.SubprocessError):
                self.ask("scancel", "--user=root")
                wait_for(lambda: not self.ask("squeue", "-h"), 15, "jobs to end")
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not self.ask("squeue", "-h"), 5, "jobs to end")
        for name in self.names:
            self.node_down(name)
        for pid in [*self.room.glob("*.pid"), *self.room.glob("munge/*.pid")]:
            _end(int(pid.read_text()))
        os.environ.pop("SLURM_CONF", None)
        _forget(self.room)

    def _configure(self) -> None:
        r, host = self.room, socket.gethostname().partition(".")[0]
        control, *ports = free_ports(1 + len(self.names))
        for part in ("ctld", "log", "gpu", *(f"spool/{n}" for n in self.names)):
            (r / part).mkdir(parents=True)
        for i in range(self.gpus):  # gres.conf wants device nodes: copies of /dev/null
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
# credentials of a job that comes back must have run out, or its new launch is refused as a replay
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
# believe this file about cores and memory, not the machine
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
        # Snakemake's jobs lose SLURM_CONF: srun finds the cluster where it looks by itself.
        ETC.mkdir(exist_ok=True)
        for conf in r.glob("*.conf"):
            (ETC / conf.name).symlink_to(conf)
        with open(HOSTS, "a") as f:  # a job's nodes reach each other by name
            f.writelines(f"127.0.0.1 {n} {MARK}\n" for n in self.names)
        self.conf = r / "slurm.conf"
        os.environ["SLURM_CONF"] = str(self.conf)

    def _munge(self) -> None:
        home = self.room / "munge"
        home.mkdir(mode=0o755)
        (home / "key").write_bytes(os.urandom(128))
        (home / "key").chmod(0o400)
        for path in (home, home / "key"):
            shutil.chown(path, "munge", "munge")
        self._daemon(
            *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"),
            *(f"--key-file={home}/key", f"--socket={home}/sock", f"--seed-file={home}/seed"),
            *(f"--pid-file={home}/munged.pid", f"--log-file={home}/log", "--num-threads=2"),
        )
        wait_for(lambda: (home / "munged.pid").exists(), 60, "munged")

    def _daemon(self, *command: str) -> None:
        """Starts a program that puts itself into the background, away from this one's pipes."""
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PATH": path}
        with open(self.room / "daemons.log", "ab") as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, check=True
            )

    # --- nodes ---

    def node_up(self, name: str) -> None:
        self._daemon("slurmd", "-f", str(self.conf), "-N", name)

    def node_down(self, name: str) -> None:
        """As if the machine lost its power: all its processes are killed at once."""
        pid = self.room / f"slurmd-{name}.pid"
        doomed = [int(pid.read_text())] if pid.exists() else []
        log = str(self.room / f"log/slurmd-{name}.log")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mark = f"SLURMD_NODENAME={name}".encode()
                inside = mark in (process / "environ").read_bytes().split(b"\0")
                stepd = (process / "comm").read_text().startswith("slurmstepd")
                if inside or (
                    stepd and log in [os.readlink(f) for f in (process / "fd").iterdir()]
                ):
                    doomed.append(int(process.name))
        for one in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        pid.unlink(missing_ok=True)
        # Left there, the remains keep a requeued job from being launched on this node again.
        shutil.rmtree(self.room / "spool" / name, ignore_errors=True)
        (self.room / "spool" / name).mkdir(parents=True, exist_ok=True)

    def idle(self) -> int:
        return len(set(self.ask("sinfo", "-hN", "-t", "idle", "-o", "%N").split()))

    # --- jobs ---

    def ask(self, *command: str) -> str:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return completed.stdout.strip()

    def jobs(self, state: str = "") -> list[str]:
        return self.ask("squeue", "-h", "-o", "%i", *(["-t", state] if state else [])).split()

    def job(self, stage_id: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.ask("scontrol", "show", "job", "-o", stage_id)))


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, str(pid))


if __name__ == "__main__":
    sweep()
    if why_not():
        raise SystemExit(why_not())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Slurm() as slurm:
        print(f"export SLURM_CONF={slurm.conf}", flush=True)
        signal.pause()
