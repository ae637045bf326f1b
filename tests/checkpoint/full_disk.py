#!/usr/bin/python3
"""A disk that takes no more: training goes on, the log says why nothing was saved, the previous
checkpoint stays whole, and saves succeed again once there is room. The full disk is a limit on the
size of a rank's files (RLIMIT_FSIZE), set while the run waits.

usage: full_disk.py PHALANX --mpirun MPIRUN --folder FOLDER
"""
import resource
import time

import mpi_job

STEPS = 10
# So small that the index is larger than rank 0's shard.
OPTIONS = ["--train-iters", str(STEPS), "--save-interval", "2", "--hidden-size", "8",
           "--ffn-hidden-size", "8"]
SYNC = [*OPTIONS, "--no-async-save"]


def limit_files(pid, size):
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_for_hang(job, number):
    job.wait_until(lambda lines: sum("PHALANX_FAULT" in line for line in lines) >= number,
                   f"wait {number}")


def start_limited(program, rank, size):
    """A run with a durable checkpoint of step 2 whose `rank` can make no file of `size` bytes. It
    waits again before step 7 is over."""
    job = program.start(PHALANX_FAULT="hang:step:3:0,hang:step:7:0", PHALANX_FAULT_SECONDS="2")
    wait_for_hang(job, 1)
    assert mpi_job.complete(program.save) == [2]
    limit_files(job.ranks()[rank], size)
    return job


def check_refusals(job, file, newest, iterations):
    """Every save that failed said so at once, with the file and what is left."""
    refused = [line for line in job.lines if "CHECKPOINT NOT SAVED" in line]
    for iteration, line in zip(iterations, refused):
        assert f"NOT SAVED at iteration {iteration}:" in line and f"/{file}" in line, line
        assert "File too large" in line and f"newest good one is of iteration {newest}" in line, line
    assert len(refused) == len(iterations), refused
    print("  " + refused[0].strip(), flush=True)


def check_room_again(arguments, reference, rank, size, file):
    program = mpi_job.program_of(arguments, f"room_again_{rank}_{size}", *SYNC)
    job = start_limited(program, rank, size)
    before = mpi_job.listing(mpi_job.checkpoint(program.save, 2))
    wait_for_hang(job, 2)
    names = sorted(path.name for path in program.save.iterdir())
    assert names == ["epoch", "iter_0000002", "latest_checkpointed_iteration.txt", "lock"], names
    after = mpi_job.listing(mpi_job.checkpoint(program.save, 2))
    after.pop("next_step.json", None)
    before.pop("next_step.json", None)
    assert after == before, "the checkpoint before has changed"
    check_refusals(job, file, 2, (4, 6))
    limit_files(job.ranks()[rank], resource.RLIM_INFINITY)
    job.end(mpi_job.DONE)
    assert mpi_job.complete(program.save)[-1] == STEPS
    mpi_job.check_same_end(program.folder, reference.folder, STEPS)
    assert mpi_job.losses(program.folder) == mpi_job.losses(reference.folder)


def check_never_room(arguments, reference):
    """Saves in the background, and the last one fails as well: an error, and the same command goes
    on from what there is."""
    program = mpi_job.program_of(arguments, "never_room", *OPTIONS)
    # A save begins after the one before has ended: that of step 2 is durable now, and the shards of
    # step 4 are written while rank 0 waits.
    job = program.start(PHALANX_FAULT="hang:step:5:0", PHALANX_FAULT_SECONDS="2")
    wait_for_hang(job, 1)
    time.sleep(1)
    limit_files(job.ranks()[1], 40000)
    text = job.end(mpi_job.FAILED)
    assert f"iteration {STEPS:8d}/{STEPS:8d}" in text, text
    check_refusals(job, "shard_00001.h5", 4, (6, 8, 10, 10))
    assert "the last checkpoint could not be saved: rank 1: " in text, text
    assert mpi_job.complete(program.save) == [2, 4]
    mpi_job.check_readable(mpi_job.checkpoint(program.save, 4))
    job = program.start()
    assert "resume verified, bit for bit" in job.end(mpi_job.DONE)
    assert mpi_job.last_resume(job.lines) == 4
    mpi_job.check_same_end(program.folder, reference.folder, STEPS)


def check_no_file_at_all(arguments):
    """Rank 0 can write nothing, records and events neither: that is no reason to stop training."""
    program = mpi_job.program_of(arguments, "nothing", *SYNC)
    text = start_limited(program, 0, 0).end(mpi_job.FAILED)
    assert f"iteration {STEPS:8d}/{STEPS:8d}" in text, text
    for file in ("metrics.jsonl", "events.out.tfevents"):
        assert sum("CANNOT WRITE" in line and file in line for line in text.splitlines()) == 1, text
    assert max(mpi_job.losses(program.folder)) == 3  # whole lines only, or this would throw
    assert mpi_job.complete(program.save) == [2]


def main():
    arguments = mpi_job.test_arguments(__doc__)
    reference = mpi_job.program_of(arguments, "reference", *OPTIONS)
    reference.run()
    folder = mpi_job.checkpoint(reference.save, STEPS)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    print(f"sizes: {sizes}", flush=True)
    assert 20000 < sizes["shard_00000.h5"] < 40000 < min(sizes["index.h5"], sizes["shard_00001.h5"])
    for rank, size, file in ((1, 40000, "shard_00001.h5"), (0, 20000, "shard_00000.h5"),
                             (0, 40000, "index.h5")):
        check_room_again(arguments, reference, rank, size, file)
    check_never_room(arguments, reference)
    check_no_file_at_all(arguments)


if __name__ == "__main__":
    main()
