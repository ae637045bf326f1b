#!/usr/bin/python3
"""Only the slurmd of a node dies: Slurm gives the node up and starts its job again elsewhere, while
the old ranks train on in the same folder. They are fenced off, and no checkpoint is harmed.

usage: split_brain_test.py PHALANX --folder FOLDER --port PORT
"""
import re
import time

import slurm_run
import testbed
from testbed import mpi_job

HANG_TIMEOUT = 15
SAVES = ["--train-iters", "1000000", "--save-interval", "100", "--hang-timeout", str(HANG_TIMEOUT)]


def check_old_ranks_are_fenced_off(arguments, cluster):
    """All ranks of the job are on the node: nothing but the fence can stop them. Rank 0, which
    completes checkpoints, ends at its next one; the others when they have waited long for it."""
    run = slurm_run.Run(arguments, cluster, "fenced", *SAVES, nodes=1, ranks_per_node=2)
    run.submit()
    run.wait_for_step(150)
    node = int(re.fullmatch(r"node(\d)", run.job()["NodeList"])[1])
    old = cluster.ranks(node)
    assert [rank.rank for rank in old] == [0, 1], old
    cluster.stop_daemon(node)
    begin = time.monotonic()
    run.wait_for(lambda: run.job()["Restarts"] == "1", "requeue")
    assert cluster.ranks(node) == old, "the old ranks went with their daemon: nothing was tested"
    at_requeue = run.last_step()
    requeued = time.monotonic() - begin
    run.wait_for(lambda: len(run.resumes()) == 2, "second start")
    testbed.wait_for(lambda: old[0] not in cluster.ranks(node), "end of the old rank 0", 10)
    testbed.wait_for(lambda: not cluster.ranks(node), "end of the old ranks", 4 * HANG_TIMEOUT)
    print(f"requeued {requeued:.1f} s after slurmd's death, at step {at_requeue}; the old ranks "
          f"ended {time.monotonic() - begin - requeued:.1f} s later")

    # The new ranks are not disturbed: they go on from the newest of the old ones' checkpoints.
    assert len(run.resumes()) == 2 and run.resumes()[1] >= at_requeue - 200, run.resumes()
    assert not run.ledger("hang"), run.ledger()
    new_step = run.last_step()
    run.wait_for_step(new_step + 150)
    run.command("cancel")
    run.wait_for(lambda: run.job()["JobState"] in testbed.ENDED, "end")
    assert run.job()["Restarts"] == "1", run.said()
    print(run.check_all_readable())
    assert mpi_job.complete(run.save)[-1] >= new_step


def main():
    arguments = testbed.test_arguments(__doc__)
    with testbed.Testbed(2, arguments.port) as cluster:
        check_old_ranks_are_fenced_off(arguments, cluster)


if __name__ == "__main__":
    main()
