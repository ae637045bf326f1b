#!/usr/bin/python3
"""A disk that takes no more: training goes on, the log says why nothing was saved, the previous
checkpoint stays whole, and saves succeed again once there is room. The full disk is a limit on the
size of a rank's files (RLIMIT_FSIZE), set while the run waits, or a small tmpfs.

usage: full_disk.py PHALANX --mpirun MPIRUN --folder FOLDER
       unshare --mount full_disk.py PHALANX ... --tmpfs   (as root, in a mount namespace)
"""
import json
import os
import resource
import subprocess
import sys
import time

import mpi_job

STEPS = 10
# So small that the index is larger than rank 0's shard.
OPTIONS = ["--train-iters", str(STEPS), "--save-interval", "2", "--hidden-size", "8",
           "--ffn-hidden-size", "8"]
SYNC = [*OPTIONS, "--no-async-save"]
TOO_LARGE = "cannot close: file write failed: File too large. "
TOO_LITTLE = "bytes free, a checkpoint needs"


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


def check_refusals(job, newest, expected):
    """Each save that failed, (iteration, words) of `expected`, said why and what is left."""
    refused = [line for line in job.lines if "CHECKPOINT NOT SAVED" in line]
    assert len(refused) == len(expected), refused
    for line, (iteration, words) in zip(refused, expected):
        for word in (f"NOT SAVED at iteration {iteration}:", *words, "Training goes on",
                     f"newest good one is of iteration {newest}"):
            assert word in line, f"'{word}' is not in: {line}"
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
    limit_files(job.ranks()[rank], resource.RLIM_INFINITY)
    job.end(mpi_job.DONE)
    check_refusals(job, 2, [(step, (f"/{file}: ", TOO_LARGE)) for step in (4, 6)])
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
    check_refusals(job, 4, [(step, ("rank 1: ", "/shard_00001.h5: ", TOO_LARGE))
                            for step in (6, 8, STEPS, STEPS)])
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


def check_limits(arguments):
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


def fill_disk(path, left):
    """Makes `path` so large that its file system has `left` bytes."""
    state = os.statvfs(path.parent)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_bsize - left)


def check_small_disk(arguments, reference, name, moment, left, refused):
    """The disk fills up at `moment`, and is emptied before step 7 is over."""
    program = mpi_job.program_of(arguments, name, *SYNC)
    job = program.start(PHALANX_FAULT=f"hang:{moment},hang:step:7:0", PHALANX_FAULT_SECONDS="2")
    wait_for_hang(job, 1)
    assert mpi_job.complete(program.save) == [2]
    time.sleep(0.5)  # for the other rank, which may be writing its shard
    ballast = arguments.folder / "ballast"
    fill_disk(ballast, left)
    wait_for_hang(job, 2)
    mpi_job.check_readable(mpi_job.checkpoint(program.save, 2))
    ballast.unlink()
    job.end(mpi_job.DONE)
    check_refusals(job, 2, refused)
    assert mpi_job.complete(program.save)[-1] == STEPS
    mpi_job.check_same_end(program.folder, reference.folder, STEPS)


def check_tmpfs(arguments):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", arguments.folder],
                   check=True)
    reference = mpi_job.program_of(arguments, "reference", *OPTIONS)
    reference.run()
    manifest = json.loads((mpi_job.checkpoint(reference.save, STEPS) / "manifest.json").read_text())
    blocks = len(manifest["shards"][0]["blocks"])
    # Known before anything is written.
    check_small_disk(arguments, reference, "little_room", "step:3:0", 8 << 20,
                     [(4, (str(arguments.folder), TOO_LITTLE)), (6, (TOO_LITTLE,))])
    # After that look at the free space: before rank 0 lays out its shard, and after, when its shard
    # has its space but the index has none. Step 6 finds the disk full.
    for name, moment, file in (("before_shards", "snapshot:2:0", "shard_00000.h5"),
                               ("before_index", f"shard:{blocks + 1}:0", "index.h5")):
        check_small_disk(arguments, reference, name, moment, 0,
                         [(4, ("rank 0: ", f"/{file}")), (6, (TOO_LITTLE,))])


def main():
    on_tmpfs = "--tmpfs" in sys.argv
    if on_tmpfs:
        sys.argv.remove("--tmpfs")
    arguments = mpi_job.test_arguments(__doc__)
    if on_tmpfs:
        check_tmpfs(arguments)
    else:
        check_limits(arguments)


if __name__ == "__main__":
    main()
