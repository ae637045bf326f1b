"""A Slurm cluster of cluster/testbed for a test: brought up, used, taken down whatever happens.

Needs only the system's Python; what a run leaves on disk is read by tests/checkpoint/mpi_job.py.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests" / "checkpoint"))

import mpi_job  # noqa: E402  pylint: disable=wrong-import-position

SCRIPT = ROOT / "cluster" / "testbed"
PATIENCE = 90  # seconds for what takes 16 s, the end of a node until it is called down, and less
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

Rank = collections.namedtuple("Rank", "rank node pid")


def test_arguments(description, **choices):
    """PHALANX --folder FOLDER --port PORT of a test; the folder, for runs, is made anew. Further
    options are given with their values, of which the first is the default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("phalanx", type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--folder", type=lambda path: pathlib.Path(path).resolve(), required=True)
    parser.add_argument("--port", type=int, required=True, help="the first of 20")
    for name, values in choices.items():
        parser.add_argument("--" + name, choices=values, default=values[0])
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    # Ended from outside, a test still leaves its `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    return arguments


def cluster_folder(port):
    """Where the cluster of a port lives: a short path, because sockets are in it."""
    return pathlib.Path(tempfile.gettempdir()) / f"phalanx-test-{os.getuid()}-{port}"


def wait_for(condition, what, timeout=PATIENCE):
    """Until condition() is true; its value. `what` is for the message."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.2)
    return value


def json_lines(path):
    """Objects of a file of JSON lines, such as metrics.jsonl, that may be being written: only whole
    lines. Empty if there is no file."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


class Testbed:
    """A running cluster; use it in a `with`. Commands run on it as its user would run them."""

    def __init__(self, nodes, port, mode="local", slurmd_timeout=5, **options):
        """`options` are those of cluster/testbed: cpus=4, memory=1000. A busy machine's daemons may
        be silent for a while, therefore the longer time-out."""
        self.folder = cluster_folder(port)
        self.nodes = nodes
        self.options = ["--port", str(port), "--mode", mode, "--until-exit", str(os.getpid())]
        for name, value in dict(options, slurmd_timeout=slurmd_timeout).items():
            self.options += ["--" + name.replace("_", "-"), str(value)]

    def __enter__(self):
        self.testbed("up", self.nodes)
        return self

    def __exit__(self, kind, error, trace):
        if kind:
            print(self.describe(), file=sys.stderr, flush=True)
        self.testbed("down")
        if not kind:
            shutil.rmtree(self.folder)

    # ---- commands ----

    def command(self, *command):
        """The command line that runs `command` on the cluster."""
        return [str(SCRIPT), "--folder", str(self.folder), "run", *map(str, command)]

    def testbed(self, *arguments, code=0):
        """cluster/testbed itself; what it says."""
        return finished([SCRIPT, "--folder", self.folder, *self.options, *arguments], code)

    def run(self, *command, code=0, timeout=PATIENCE, **environment):
        """Runs a command to its end, which must be with `code` unless that is None."""
        return finished(self.command(*command), code, timeout, environment)

    def start(self, *command, **environment):
        """Starts a command, such as srun; its lines can be waited for."""
        return mpi_job.Job(self.command(*command), environment)

    def kill(self, node):
        """Power failure of node number `node`."""
        self.testbed("kill", node)

    def start_node(self, node):
        """The node comes back."""
        self.testbed("start", node)

    def stop_daemon(self, node):
        """Its slurmd dies, its ranks live on."""
        self.testbed("stop-daemon", node)

    # ---- jobs ----

    def submit(self, script, *options, **environment):
        """sbatch of a script given as text; the job's number. Its log is log_of(job)."""
        log = ["--output", str(self.folder / "job-%j.log"), "--open-mode", "append"]
        answer = finished(self.command("sbatch", "--parsable", *log, *options), 0, PATIENCE,
                          environment, "#!/bin/bash\n" + script)
        return int(answer.split(";")[0])

    def log_of(self, job):
        path = self.folder / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def job(self, job):
        """Slurm's record of a job: name -> text."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "-o", "show", "job", job)))

    def wait_for_state(self, job, *states, timeout=PATIENCE):
        """Until the job is in one of the states; its record. Any other end fails the test."""
        def record():
            found = self.job(job)
            ended = found["JobState"] in ENDED and found["JobState"] not in states
            assert not ended, f"job {job} ended: {found}\n{self.log_of(job)}"
            return found if found["JobState"] in states else None
        return wait_for(record, f"job {job} in state {' or '.join(states)}", timeout)

    def wait_for_end(self, job, state="COMPLETED", timeout=PATIENCE):
        """Until the job has ended, which must be in `state`; its log."""
        self.wait_for_state(job, state, timeout=timeout)
        return self.log_of(job)

    def wait_for_step(self, job, step, timeout=PATIENCE):
        """Until a training job has reported that step."""
        def reached():
            return max(mpi_job.steps_of(self.log_of(job).splitlines()), default=0) >= step
        wait_for(reached, f"step {step} of job {job}", timeout)

    def wait_for_down(self, node, timeout=PATIENCE):
        """Until Slurm has given up a node. Not by its state: where that changes in the second of a
        query, slurmctld keeps to the CPUs it counted for the query, and clients say "mixed"."""
        def down():
            return "Reason=Not responding" in self.run("scontrol", "show", "node", f"node{node}")
        wait_for(down, f"end of node{node} for Slurm", timeout)

    def ranks(self, node=None):
        """Processes of `phalanx train` on the cluster, or on one of its nodes, by rank."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                names = dict(variable.partition(b"=")[::2]
                             for variable in (entry / "environ").read_bytes().split(b"\0"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            rank = names.get(b"OMPI_COMM_WORLD_RANK", names.get(b"PMIX_RANK"))
            if (names.get(b"SLURM_CONF", b"").decode() == f"{self.folder}/slurm.conf"
                    and b"train" in arguments[1:2] and rank is not None):
                found.append(Rank(int(rank), names.get(b"SLURMD_NODENAME", b"").decode(),
                                  int(entry.name)))
        return sorted(rank for rank in found if node is None or rank.node == f"node{node}")

    def describe(self):
        """For the message of a test that failed."""
        commands = [["sinfo", "-N"], ["squeue", "-t", "all"]]
        parts = [self.run(*command, code=None) for command in commands]
        parts += [f"--- {path}\n{path.read_text(errors='replace')[-2000:]}"
                  for path in sorted(self.folder.glob("job-*.log"))]
        return "\n".join([*parts, f"logs of the daemons are in {self.folder}/log"])


def finished(command, code, timeout=PATIENCE, environment=None, text=""):
    """Runs a command with `text` as its input; what it says, errors included."""
    done = subprocess.run([str(word) for word in command], input=text, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
                          env=dict(os.environ, **(environment or {})), check=False)
    assert code is None or done.returncode == code, (
        f"{' '.join(map(str, command))}: {done.returncode} instead of {code}\n{done.stdout}")
    return done.stdout
