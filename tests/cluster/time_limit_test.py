#!/usr/bin/python3
"""Jobs that are ended from outside go on by themselves, bit for bit: a time limit, one that comes
while nothing can be saved, `scontrol requeue`. A stop that was asked for is one.

usage: time_limit_test.py PHALANX --folder FOLDER --port PORT
"""
import slurm_run
import testbed
from testbed import mpi_job

STEPS = 40
# Not in the background: step 20 is to be durable when step 25 pauses, however fast the steps are.
SAVES = ["--train-iters", str(STEPS), "--save-interval", "10", "--no-async-save"]


def paused(seconds):
    """All ranks wait in their 25th step; a resumed run has fewer steps left than that."""
    return {"PHALANX_FAULT": "hang:step:25", "PHALANX_FAULT_SECONDS": str(seconds)}


def check_saved_at_limit(run, reference):
    """One minute is Slurm's shortest limit, and it looks every 30 s whether to warn of one: within
    the pause, behind which the run is saved at step 25. A later start may be warned at once."""
    run.wait_for_end(timeout=150)
    assert int(run.job()["Restarts"]) >= 1, run.said()
    assert run.ledger("attempt_end")[0]["cause"] == "time limit", run.said()
    resumes = run.resumes()
    assert resumes[:2] == [None, 25] and resumes[1:] == sorted(resumes[1:]), resumes
    check_end(run, reference)


def check_hit_limit(run, reference):
    """The pause is longer than the limit: nothing can be saved, the last checkpoint has to do."""
    run.wait_for_end(timeout=180)
    resumes = run.resumes()
    assert resumes[:2] == [None, 20] and resumes[1:] == sorted(resumes[1:]), resumes
    check_end(run, reference)


def check_requeued(run, reference):
    """scontrol requeue in the middle of a step: the ranks are killed."""
    run.wait_for(lambda: "PHALANX_FAULT" in run.log(), "pause")
    run.cluster.run("scontrol", "requeue", run.jobs()[-1])
    run.wait_for_end()
    assert run.job()["Restarts"] == "1", run.said()
    assert run.resumes()[0] is None and run.resumes()[1] in (20, 25), run.resumes()
    check_end(run, reference)


def check_stop_file(run):
    """RUN/STOP ends it with a checkpoint, and it does not come back."""
    run.wait_for_step(20)
    (run.folder / "STOP").touch()
    run.wait_for(lambda: run.job()["JobState"] in testbed.ENDED, "end")
    assert run.job()["Restarts"] == "0", run.said()
    assert mpi_job.complete(run.save)[-1] == run.last_step(), run.said()
    assert run.ledger("decision")[-1]["action"] == "end", run.said()


def check_end(run, reference):
    run.check_all_readable()
    mpi_job.check_same_end(run.folder, reference.folder, STEPS)
    assert mpi_job.losses(run.folder) == mpi_job.losses(reference.folder)


def main():
    arguments = testbed.test_arguments(__doc__)
    with testbed.Testbed(8, arguments.port) as cluster:
        def run(name, *options, train=(), **environment):
            made = slurm_run.Run(arguments, cluster, name, *SAVES, *train, submit=options)
            made.submit(**environment)
            return made
        saved = run("saved", "--time", "00:01:00", **paused(32))
        hit = run("hit", "--time", "00:01:00", **paused(600))
        requeued = run("requeued", **paused(600))
        stopped = run("stopped", train=["--train-iters", "1000000"])
        reference = slurm_run.Run(arguments, cluster, "reference", *SAVES)
        reference.start_alone().end(mpi_job.DONE)
        check_stop_file(stopped)
        check_requeued(requeued, reference)
        check_saved_at_limit(saved, reference)
        check_hit_limit(hit, reference)


if __name__ == "__main__":
    main()
