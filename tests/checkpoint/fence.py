#!/usr/bin/python3
"""Two live runs on one folder of checkpoints: the later start owns it. The earlier one ends with
exit code 76, says why, and changes nothing any more, wherever it was when the later one came.

usage: fence.py PHALANX --mpirun MPIRUN --folder FOLDER
"""
import signal
import time

import mpi_job

STEPS = 8
OPTIONS = ["--train-iters", str(STEPS), "--save-interval", "2"]
# Where the earlier run is: the moment, seconds it stays there, and whether its ranks are stopped
# as well (a machine that was declared dead and comes back). Without: it goes on by itself.
PLACES = {
    "stopped_in_a_step": ("step:3:0", 1, True),
    "stopped_in_a_shard": ("shard:20:1", 1, True),
    "stopped_before_a_commit": ("commit:2:0", 1, True),
    "slow_in_a_step": ("step:5:1", 8, False),
    "slow_in_a_shard": ("shard:20:0", 8, False),
    "slow_before_a_commit": ("commit:2:0", 8, False),
}


def state_of(program):
    """What belongs to the later run alone: the checkpoints, configuration and weights."""
    files = mpi_job.listing(program.save)
    for name in ("config.ini", "weights.h5"):
        files[name] = mpi_job.listing(program.folder)[name]
    return files


def check_place(arguments, reference, name):
    moment, seconds, stopped = PLACES[name]
    program = mpi_job.program_of(arguments, name, *OPTIONS)
    earlier = program.start(PHALANX_FAULT=f"hang:{moment}", PHALANX_FAULT_SECONDS=str(seconds))
    earlier.wait_for("PHALANX_FAULT")
    ranks = earlier.ranks()
    if stopped:
        earlier.signal(signal.SIGSTOP, ranks)
    newest = max(mpi_job.complete(program.save), default=None)

    later = program.start()
    text = later.end(mpi_job.DONE)
    assert mpi_job.last_resume(later.lines) == newest, text
    assert mpi_job.complete(program.save)[-1] == STEPS
    mpi_job.check_same_end(program.folder, reference.folder, STEPS)
    assert earlier.process.poll() is None, f"the earlier run ended too soon\n{earlier.text()}"

    before = state_of(program)
    earlier.signal(signal.SIGCONT, ranks)
    said = earlier.end(mpi_job.FENCED)
    assert "belongs to another start of the run: epoch 2" in said, said
    assert "this job has epoch 1" in said, said
    after = state_of(program)
    changed = {file for file in before.keys() | after.keys() if before.get(file) != after.get(file)}
    assert not changed, f"the earlier run changed {sorted(changed)}"


def main():
    arguments = mpi_job.test_arguments(__doc__)
    reference = mpi_job.program_of(arguments, "reference", *OPTIONS)
    reference.run()
    for name in PLACES:
        begin = time.monotonic()
        check_place(arguments, reference, name)
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
