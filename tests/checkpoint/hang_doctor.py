#!/usr/bin/python3
"""Runs in which nothing goes on any more: the rank that holds them up is named, all ranks end with
exit code 74, and nothing of them is left. Runs that are slow, but alive, are let alone.

usage: hang_doctor.py PHALANX --mpirun MPIRUN --folder FOLDER
"""
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import time

import mpi_job

HUNG = 74  # core/exit_codes.h
TIMEOUT = 3  # --hang-timeout of the runs
BOUND = 20  # seconds, beside the deadline, for diagnosis, stacks and the end, on a busy machine
FOREVER = "1000000"


def hang_lines(text):
    return re.findall(r"^phalanx: hang: (.*)$", text, re.M)


def options(*more):
    return ["--hang-timeout", str(TIMEOUT), "--log-interval", "1", *more]


def check_one_suspect(program, text, *parts):
    """Exactly one sentence, on standard error and in the ledger, that has all parts."""
    lines = hang_lines(text)
    assert len(lines) == 1, f"{len(lines)} sentences:\n{text}"
    for part in parts:
        assert re.search(part, lines[0]), f"no '{part}' in: {lines[0]}"
    records = [json.loads(line) for line in
               (program.folder / "ledger.jsonl").read_text().splitlines()]
    hangs = [record for record in records if record["event"] == "hang"]
    assert [hang["text"] for hang in hangs] == lines, hangs
    node = re.search(r"on (\S+) ", lines[0]).group(1)
    assert hangs[0]["nodes"] == [node], hangs
    return lines[0]


def check_stacks(program, ranks, *names):
    """All threads of these ranks; each name is in one of their frames."""
    found = {}
    for rank in ranks:
        found[rank] = (program.folder / "ranks" / f"rank_{rank:05d}.stacks").read_text()
        assert found[rank].count("\nthread ") >= 3, found[rank]
        assert f"native stacks of rank {rank}" in found[rank]
    for name in names:
        assert any(name in text for text in found.values()), f"no {name} in {found}"


def gone(pids):
    """Within the time that a kernel may take to bury them after the launcher's end."""
    end = time.monotonic() + 5
    while left := [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return not left


def stopped(arguments):
    """SIGSTOP to one rank of four in the middle of training."""
    program = mpi_job.program_of(arguments, "stopped", *options("--train-iters", FOREVER),
                                 "--save-interval", "0", ranks=4)
    job = program.start()
    job.wait_for_step(20)
    pids = job.ranks()
    assert len(pids) == 4
    began = time.monotonic()
    os.kill(pids[2], signal.SIGSTOP)
    text = job.end(HUNG)
    seconds = time.monotonic() - began
    assert TIMEOUT <= seconds <= TIMEOUT + BOUND, f"{seconds:.1f} s"
    assert gone(pids), "a rank is left"
    check_one_suspect(program, text, r"^rank 2 on \S+ does not answer",
                      rf"process {pids[2]} is stopped", r"no heartbeat for \d+ s")
    check_stacks(program, [0, 1, 3], "MPI_")
    assert not (program.folder / "ranks/rank_00002.stacks").exists()
    assert sum("native stacks of the ranks are in" in line for line in job.lines) == 1
    return seconds


def hangs(arguments, name, fault, rank, parts, *more, ranks=2, frames=("fault_moment",)):
    """PHALANX_FAULT in one rank, which must be named."""
    program = mpi_job.program_of(arguments, name, *options(*more), ranks=ranks)
    began = time.monotonic()
    job = program.start(PHALANX_FAULT=fault)
    job.wait_for("PHALANX_FAULT")
    fell = time.monotonic()
    text = job.end(HUNG)
    seconds = time.monotonic() - fell
    assert TIMEOUT <= seconds <= TIMEOUT + BOUND, f"{name}: {seconds:.1f} s, began {began - fell}"
    check_one_suspect(program, text, rf"^rank {rank} on ", *parts)
    check_stacks(program, range(ranks), *frames)
    return seconds


def in_a_step(arguments):
    seconds = hangs(arguments, "step", "hang:step:3:1", 1,
                    [r"has not entered all_reduce #\d+ of world \(ranks 0-3\), in which ranks 0, "
                     r"2, 3 wait for \d+ s", r"\(step 3\) for \d+ s$"],
                    "--train-iters", "10", ranks=4)
    text = (arguments.folder / "step/ranks").glob("hang_*")
    assert [path.read_text().split("\n")[0] for path in text] == ["hang"]
    return seconds


def in_a_file(arguments):
    """The thread that writes a checkpoint hangs; the run waits for it at its end."""
    return hangs(arguments, "file", "hang:shard:1:1", 1,
                 [r"has not entered .* of world", r"`writing \S*/shard_00001.h5` and in `wait for "
                  r"the save`"], "--train-iters", "4", "--save-interval", "4")


def in_an_evaluation(arguments):
    return hangs(arguments, "evaluation", "hang:evaluate:2:1", 1,
                 [r"it is in `evaluate` \(step 2\)"],
                 "--train-iters", "10", "--eval-interval", "2", "--eval-iters", "4")


def in_the_data(arguments):
    return hangs(arguments, "data", "hang:data:1:1", 1, [r"it is in `open the data` for \d+ s"],
                 "--train-iters", "10")


def alone(arguments):
    return hangs(arguments, "alone", "hang:step:3", 0,
                 [r"waits for no other rank; it has begun nothing since"], "--train-iters", "10",
                 ranks=1)


def slow(arguments):
    """Now one, now the other rank holds the run up, longer than the deadline in all."""
    faults = ["hang:data:1:1", "hang:step:1:0", "hang:step:2:1", "hang:evaluate:1:0"]
    program = mpi_job.program_of(arguments, "slow", *options("--train-iters", "4"),
                                 "--eval-interval", "2", "--eval-iters", "2")
    began = time.monotonic()
    text = program.run(PHALANX_FAULT=",".join(faults), PHALANX_FAULT_SECONDS=str(TIMEOUT - 1))
    seconds = time.monotonic() - began
    assert text.count("PHALANX_FAULT") == len(faults), text
    assert seconds > 2 * TIMEOUT, f"{seconds:.1f} s"
    assert not hang_lines(text) and not list((program.folder / "ranks").glob("hang_*"))
    assert sorted(path.name for path in (program.folder / "ranks").iterdir()) == [
        "rank_00000.flight", "rank_00001.flight"]
    return seconds


def waits_for_one_that_works(arguments):
    """Rank 0 waits longer than the deadline for rank 1, which writes its blocks one by one."""
    faults = ",".join(f"hang:shard:{block}:1" for block in range(1, 5))
    program = mpi_job.program_of(arguments, "works", *options("--train-iters", "4"),
                                 "--save-interval", "4")
    text = program.run(PHALANX_FAULT=faults, PHALANX_FAULT_SECONDS=str(TIMEOUT - 1))
    assert text.count("PHALANX_FAULT") == 4, text
    seconds = float(re.search(r"durable: .* in ([0-9.]+) s \(", text).group(1))
    assert seconds > 2 * TIMEOUT, seconds
    assert not hang_lines(text) and not list((program.folder / "ranks").glob("hang_*"))
    return seconds


def off(arguments):
    """--hang-timeout 0 ends nobody, and the records are kept all the same."""
    program = mpi_job.program_of(arguments, "off", "--hang-timeout", "0", "--train-iters", "4")
    began = time.monotonic()
    text = program.run(PHALANX_FAULT="hang:step:2:1", PHALANX_FAULT_SECONDS=str(2 * TIMEOUT))
    assert time.monotonic() - began > 2 * TIMEOUT
    assert not hang_lines(text) and (program.folder / "ranks/rank_00001.flight").exists()
    return time.monotonic() - began


def main():
    arguments = mpi_job.test_arguments(__doc__)
    cases = [stopped, slow, waits_for_one_that_works, in_a_step, in_a_file, in_an_evaluation,
             in_the_data, alone, off]
    # Side by side, because they mostly wait.
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        futures = {case: pool.submit(case, arguments) for case in cases}
    failures = {case.__name__: future.exception() for case, future in futures.items()
                if future.exception()}
    assert not failures, "\n".join(f"{name}: {error!r}" for name, error in failures.items())
    for case, future in futures.items():
        print(f"{case.__name__}: {future.result():.1f} s")


if __name__ == "__main__":
    main()
