"""A run that `phalanx submit` hands to the test cluster, and what it leaves in its folder."""
import json
import re
import time

import testbed
from testbed import mpi_job


class Run:
    """One run folder: submitted, watched through its files, compared at its end."""

    def __init__(self, arguments, cluster, name, *options, nodes=2, ranks_per_node=1, submit=()):
        """`options` of training beside mpi_job.TINY; `submit`: further ones of submission."""
        self.phalanx = arguments.phalanx
        self.cluster = cluster
        self.folder = arguments.folder / name
        self.ranks = nodes * ranks_per_node
        self.options = [*mpi_job.TINY, *options]
        self.submit_options = ["--nodes", str(nodes), "--ranks-per-node", str(ranks_per_node),
                               *submit]

    def submit(self, code=0, **environment):
        """phalanx submit; what it says."""
        return self.cluster.run(self.phalanx, "submit", *self.submit_options, "--", "--run-dir",
                                self.folder, *self.options, code=code, **environment)

    def command(self, name, *options, code=0):
        """phalanx status or cancel of this run; what it says."""
        return self.cluster.run(self.phalanx, name, self.folder, *options, code=code)

    def start_alone(self):
        """The same run without Slurm, on as many ranks; a Job."""
        return mpi_job.Program(self.phalanx, "mpirun", self.ranks, self.folder,
                               self.options[len(mpi_job.TINY):]).start()

    # ---- what is in the folder ----

    @property
    def save(self):
        return self.folder / "checkpoints"

    def jobs(self):
        """Numbers of its Slurm jobs, the newest last."""
        return json.loads((self.folder / "submission.json").read_text())["jobs"]

    def job(self):
        return self.cluster.job(self.jobs()[-1])

    def log(self):
        """What all its jobs have said."""
        return "\n".join(path.read_text(errors="replace")
                         for path in sorted(self.folder.glob("slurm-*.log")))

    def records(self, file, event=None):
        """Objects of ledger.jsonl or metrics.jsonl."""
        return [record for record in testbed.json_lines(self.folder / file)
                if event is None or record.get("event") == event]

    def ledger(self, event=None):
        return self.records("ledger.jsonl", event)

    def last_step(self):
        return max((record["iteration"] for record in self.records("metrics.jsonl")
                    if "lm_loss" in record), default=0)

    # ---- waiting ----

    def wait_for(self, condition, what, timeout=testbed.PATIENCE):
        """As testbed.wait_for; fails at once, with the run's log, when the job has ended."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            state = self.job()["JobState"]
            ended = state in testbed.ENDED and not condition()
            assert not ended, f"{state} before {what}\n{self.said()}"
            assert time.monotonic() < end, f"no {what} within {timeout} s\n{self.said()}"
            time.sleep(0.3)
        return value

    def said(self):
        """Ledger and log, for the message of a test that failed."""
        ledger = "\n".join(map(str, self.ledger()))
        return f"{self.job()}\n{ledger}\n{self.log()[-6000:]}"

    def wait_for_step(self, step, timeout=testbed.PATIENCE):
        self.wait_for(lambda: self.last_step() >= step, f"step {step}", timeout)

    def wait_for_event(self, event, count=1, timeout=testbed.PATIENCE):
        """Until the ledger has `count` records of that event; the last one."""
        self.wait_for(lambda: len(self.ledger(event)) >= count, f"{count} x {event}", timeout)
        return self.ledger(event)[-1]

    def wait_for_end(self, state="COMPLETED", timeout=testbed.PATIENCE):
        """Until the newest job has ended, which must be in `state`."""
        self.wait_for(lambda: self.job()["JobState"] in testbed.ENDED, "end", timeout)
        found = self.job()["JobState"]
        assert found == state, f"ended in {found} instead of {state}\n{self.said()}"

    # ---- checks ----

    def resumes(self):
        """Iterations from which its starts went on, in order; None for a start from scratch."""
        return [int(match) if match else None for match in
                re.findall(r"resumed from .*\(iteration (\d+),|starting from scratch", self.log())]

    def check_all_readable(self):
        """Every checkpoint is whole, by its checksums and for h5py."""
        verified = testbed.finished([self.phalanx, "checkpoint", "verify", self.folder], 0)
        for iteration in mpi_job.complete(self.save):
            mpi_job.check_readable(mpi_job.checkpoint(self.save, iteration))
        return verified
