#!/usr/bin/python3
"""A file that takes long to write: the log names rank, file and seconds while training goes on, and
the checkpoint is durable when it is written after all.

usage: hang.py PHALANX --mpirun MPIRUN --folder FOLDER
"""
import re

import mpi_job

STEPS, SECONDS = 400, 4


def main():
    arguments = mpi_job.test_arguments(__doc__)
    program = mpi_job.program_of(arguments, "hangs", "--train-iters", str(STEPS), "--save-interval",
                                 "200", "--save-report-seconds", "1")
    # Rank 1 hangs at its first block. The step 5 of rank 0 comes while it does.
    job = program.start(PHALANX_FAULT="hang:shard:1:1", PHALANX_FAULT_SECONDS=str(SECONDS))
    text = job.end(mpi_job.DONE)
    lines = job.lines

    def place(part):
        found = [i for i, line in enumerate(lines) if part in line]
        assert found, f"no line with '{part}':\n{text}"
        return found[0]

    file = program.save / "iter_0000200.writing.1" / "shard_00001.h5"
    reports = [float(seconds) for seconds in re.findall(
        rf"rank 1 has been writing {re.escape(str(file))} for ([0-9.]+) s", text)]
    assert SECONDS - 1 <= len(reports) <= SECONDS and 1 <= reports[0] < 2, f"reports: {reports}"
    assert all(0.5 < b - a < 2 for a, b in zip(reports, reports[1:])), f"reports: {reports}"
    assert "rank 0 has been writing" not in text
    hang, durable = place("PHALANX_FAULT"), place("successfully saved checkpoint")
    meanwhile = mpi_job.steps_of(lines[hang:durable])
    assert len(meanwhile) >= 100, f"{len(meanwhile)} steps while the writer hung"
    assert mpi_job.complete(program.save) == [200, STEPS]
    for iteration in (200, STEPS):
        mpi_job.check_readable(mpi_job.checkpoint(program.save, iteration))
    slow = float(re.search(r"durable: .* in ([0-9.]+) s \(", text).group(1))
    assert slow >= SECONDS, slow
    assert "slowest writer: rank 1" in lines[durable + 1], lines[durable + 1]
    print(f"reported after {reports} s; {len(meanwhile)} steps in {slow:.1f} s of saving")


if __name__ == "__main__":
    main()
