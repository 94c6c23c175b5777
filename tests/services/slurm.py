"""A Slurm of one node on this machine: its controller and its daemon, without accounting."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from pathlib import Path

from tests.services.servers import free_port

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class SlurmCluster:
    """Its daemons run as this user, who may submit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, list[subprocess.Popen[bytes]]()
        for name in ("state", "spool"):
            (folder / name).mkdir()
        text = CONFIGURATION.format(
            host=socket.gethostname(),
            controller=free_port(),
            node=free_port(),
            user=getpass.getuser(),
            folder=folder,
            cpus=len(os.sched_getaffinity(0)),
        )
        (folder / "slurm.conf").write_text(text)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for program in ("slurmctld", "slurmd"):
            command = [program, "-D", "-f", self.environment["SLURM_CONF"]]
            with (self.folder / f"{program}.out").open("wb") as out:
                self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
        until = time.monotonic() + 60
        while self.ask("sinfo", "--noheader", "--format=%t") != "idle":
            assert time.monotonic() < until, (self.folder / "slurmctld.log").read_text()
            time.sleep(0.1)

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()

    def stop(self) -> None:
        self.ask("scancel", "--state=PENDING", f"--user={getpass.getuser()}")
        self.ask("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()
