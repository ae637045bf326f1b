#!/usr/bin/python3
"""One rank dies or stops: the job starts again by itself and ends bit for bit as one in which
nothing happened. What stopped is named by rank and node. A rank that dies at every start does not
keep the cluster busy for ever.

usage: rank_failure_test.py PHALANX --folder FOLDER --port PORT
"""
import os
import re
import signal
import time

import slurm_run
import testbed
from testbed import mpi_job

STEPS = 40
SAVES = ["--train-iters", str(STEPS), "--save-interval", "10"]
HANG_TIMEOUT = 20
# Ranks (or one, for which the others wait) stay in their 25th step until something is done to them.
# A resumed run has fewer steps left than that.
PAUSE = {"PHALANX_FAULT": "hang:step:25", "PHALANX_FAULT_SECONDS": "600"}
PAUSE_OF_RANK_1 = dict(PAUSE, PHALANX_FAULT="hang:step:25:1")
# The hopeless run comes back to its own nodes, because no other run may use them.
NOT_THE_LAST, ONLY_THE_LAST = (["--sbatch-options", f"exclude={nodes}"]
                               for nodes in ("node[5-7]", "node[1-4]"))


def paused_run(arguments, cluster, name, pause, *options):
    """A run that waits in its 25th step, on two nodes."""
    run = slurm_run.Run(arguments, cluster, name, *SAVES, *options, submit=NOT_THE_LAST)
    run.submit(**pause)
    return run


def rank_of(run, number):
    """The process of a rank once the run pauses."""
    run.wait_for(lambda: "PHALANX_FAULT" in run.log(), "pause")
    nodes = run.cluster.run("scontrol", "show", "hostnames", run.job()["NodeList"]).split()
    ranks = [rank for rank in run.cluster.ranks() if rank.node in nodes]
    assert [rank.rank for rank in ranks] == [0, 1], ranks
    return ranks[number]


def check_killed(run, rank):
    """After SIGKILL of a rank: the others end, and the job is queued again."""
    end = run.wait_for_event("attempt_end")
    assert rank.node in str(end), end
    assert run.wait_for_event("decision")["action"] == "requeue"


def check_stopped(run, rank, begin):
    """After SIGSTOP of a rank: it is named within the deadline, with stacks of the others, and the
    job is queued again."""
    pattern = rf"phalanx: hang: .*\brank 1\b.*\b{rank.node}\b.*"
    run.wait_for(lambda: re.search(pattern, run.log()), f"sentence like {pattern}")
    seconds = time.monotonic() - begin
    print(f"named {seconds:.1f} s after SIGSTOP: {re.search(pattern, run.log())[0]}")
    # The deadline, and time to make sure that the rank does not answer.
    assert seconds <= 2 * HANG_TIMEOUT, seconds
    end = run.wait_for_event("attempt_end")
    assert end["exit_code"] == 74, end
    assert run.wait_for_event("decision")["action"] == "requeue"
    stacks = run.folder / "ranks" / "rank_00000.stacks"
    assert "MPI" in stacks.read_text(), stacks.read_text()


def check_hopeless(run):
    """Rank 1 dies in its third step, whenever it starts: two restarts, the second without the node
    that failed twice, and no third."""
    run.wait_for(lambda: [record["action"] for record in run.ledger("decision")][-1:] == ["end"],
                 "end of the restarts")
    assert len(run.ledger("attempt_begin")) == 3, run.said()
    first, second, third = run.ledger("attempt_end")
    assert "two restarts" in run.ledger("decision")[-1]["reason"], run.said()
    assert first["nodes_failed"] == second["nodes_failed"] != [], run.said()
    assert run.ledger("submitted")[-1]["excluded"] == first["nodes_failed"], run.said()
    assert first["nodes_failed"][0] not in run.ledger("attempt_begin")[-1]["nodes"], run.said()
    assert third["nodes_failed"] != first["nodes_failed"], run.said()
    testbed.wait_for(lambda: not run.cluster.run("squeue", "-h"), "empty queue")


def check_end(run, reference):
    """It went on from a checkpoint and ended like the run that was left alone."""
    run.wait_for_end()
    assert run.job()["Restarts"] == "1", run.said()
    assert run.resumes() == [None, 20], run.resumes()
    run.check_all_readable()
    mpi_job.check_same_end(run.folder, reference.folder, STEPS)
    assert mpi_job.losses(run.folder) == mpi_job.losses(reference.folder)


def main():
    arguments = testbed.test_arguments(__doc__)
    with testbed.Testbed(7, arguments.port) as cluster:
        killed = paused_run(arguments, cluster, "killed", PAUSE)
        stopped = paused_run(arguments, cluster, "stopped", PAUSE_OF_RANK_1, "--hang-timeout",
                             str(HANG_TIMEOUT))
        hopeless = slurm_run.Run(arguments, cluster, "hopeless", *SAVES, submit=ONLY_THE_LAST)
        hopeless.submit(PHALANX_FAULT="kill:step:3:1")
        reference = slurm_run.Run(arguments, cluster, "reference", *SAVES)
        alone = reference.start_alone()
        ranks = [rank_of(run, 1) for run in (killed, stopped)]
        os.kill(ranks[0].pid, signal.SIGKILL)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        begin = time.monotonic()
        check_killed(killed, ranks[0])
        check_stopped(stopped, ranks[1], begin)
        alone.end(mpi_job.DONE)
        check_end(killed, reference)
        check_end(stopped, reference)
        check_hopeless(hopeless)


if __name__ == "__main__":
    main()
