#!/usr/bin/python3
"""Signals end a run after a step with a durable checkpoint and exit code 75, and the same command
goes on bit for bit: each signal, to mpirun or to one rank, before the first step, in training, in a
save, in an evaluation; twice; chosen by --exit-signals. Likewise --exit-duration-in-mins.

usage: signals.py PHALANX --mpirun MPIRUN --folder FOLDER
"""
import contextlib
import fcntl
import signal
import time

import mpi_job

STEPS = 16
SAVES = ["--train-iters", str(STEPS), "--save-interval", "5"]
# At SIGTERM Open MPI's mpirun ends the job in steps of so many seconds (1 unless told otherwise):
# SIGCONT, SIGTERM, SIGKILL; and it exits with a code of its own.
MPIRUN_PAUSE = 2


@contextlib.contextmanager
def held_at_start(save):
    """A run that starts meanwhile waits for the lock of its folder."""
    save.mkdir(parents=True, exist_ok=True)
    with open(save / "lock", "w", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def stop(program, number, receiver, moment="step:1:0", times=1):
    """Runs until `moment`, then sends signal `number`, at once `times` times. `receiver` is
    "mpirun", "all" ranks or a rank. Checks how the run ends; returns the iteration it saved."""
    ends_job = receiver == "mpirun" and number == signal.SIGTERM
    job = program.start(PHALANX_FAULT=f"hang:{moment}",
                        PHALANX_FAULT_SECONDS=str(MPIRUN_PAUSE + 1 if ends_job else 1),
                        OMPI_MCA_odls_base_sigkill_timeout=str(MPIRUN_PAUSE if ends_job else 1))
    job.wait_for("PHALANX_FAULT")
    pids = {"mpirun": [job.process.pid], "all": job.ranks()}.get(receiver)
    for time_number in range(times):
        job.signal(number, pids if pids else [job.ranks()[receiver]])
        time.sleep(0.1 * (times - time_number - 1))
    text = job.end(None if ends_job else mpi_job.STOPPED)
    assert "stopped by a signal after step" in text, text
    step = mpi_job.steps_of(job.lines)[-1]
    newest = mpi_job.complete(program.save)[-1]
    assert newest == step, f"step {step}, the newest checkpoint is of {newest}"
    mpi_job.check_readable(mpi_job.checkpoint(program.save, newest))
    return step


def check_training(arguments):
    """One run stopped again and again until it ends by itself equals one that never stopped."""
    reference = mpi_job.program_of(arguments, "reference", *SAVES)
    reference.run()
    program = mpi_job.program_of(arguments, "stopped", *SAVES)
    steps = [
        stop(program, signal.SIGUSR1, "mpirun"),
        stop(program, signal.SIGTERM, 1),
        stop(program, signal.SIGUSR2, 0),
        # While the shards of the save at step 5 are written; the second does not end it early.
        stop(program, signal.SIGTERM, "all", moment="shard:1:1", times=2),
        # mpirun ends as it likes; the ranks save nevertheless.
        stop(program, signal.SIGTERM, "mpirun"),
    ]
    print(f"stopped after steps {steps}", flush=True)
    assert steps == sorted(set(steps)) and steps[-1] < STEPS, steps
    text = program.run()
    assert f"(iteration {steps[-1]}," in text and "resume not verified" in text, text
    mpi_job.check_same_end(program.folder, reference.folder, STEPS)
    assert mpi_job.losses(program.folder) == mpi_job.losses(reference.folder)


def check_before_first_step(arguments):
    """Nothing to save is no error; neither when there are checkpoints nor when there are none."""
    program = mpi_job.program_of(arguments, "early", *SAVES)
    for expected in ([], [1]):
        with held_at_start(program.save):
            job = program.start()
            job.wait_for("most of any rank")
            job.signal(signal.SIGUSR2, [job.process.pid])
            time.sleep(0.3)
        text = job.end(mpi_job.STOPPED)
        assert not mpi_job.steps_of(job.lines) and "saving checkpoint" not in text, text
        assert mpi_job.complete(program.save) == expected
        if not expected:
            assert "there is nothing to save" in text and "nan" not in text, text
            assert stop(program, signal.SIGUSR1, 0) == 1


def check_evaluation(arguments):
    """A signal ends an evaluation too, with the last step saved. In the last one, after all steps
    have been done and saved, it is no stop."""
    long = ["--eval-interval", "2", "--eval-iters", "100000"]
    program = mpi_job.program_of(arguments, "evaluation", *SAVES[2:], "--train-iters", "3", *long)
    for step, code in ((2, mpi_job.STOPPED), (3, mpi_job.DONE)):
        job = program.start()
        job.wait_for_step(step)
        time.sleep(0.5)
        job.signal(signal.SIGTERM, [job.ranks()[1]])
        text = job.end(code)
        assert "validation loss" not in text, text
        assert mpi_job.steps_of(job.lines)[-1] == step, text
        assert mpi_job.complete(program.save)[-1] == step
    reference = mpi_job.program_of(arguments, "no_evaluation", *SAVES[2:], "--train-iters", "3")
    reference.run()
    mpi_job.check_same_end(program.folder, reference.folder, 3)


def check_chosen_signals(arguments):
    """A signal that was not chosen does what it does to any program."""
    program = mpi_job.program_of(arguments, "chosen", *SAVES, "--exit-signals", "SIGUSR2")
    assert stop(program, signal.SIGUSR2, 1) <= 2
    before = mpi_job.complete(program.save)
    job = program.start(PHALANX_FAULT="hang:step:1:0", PHALANX_FAULT_SECONDS="1")
    job.wait_for("PHALANX_FAULT")
    job.signal(signal.SIGTERM, [job.ranks()[1]])
    assert "stopped by" not in job.end(128 + signal.SIGTERM)
    assert mpi_job.complete(program.save) == before

    wrong = mpi_job.program_of(arguments, "wrong", *SAVES, "--exit-signals", "SIGTERM", "SIGUSR3")
    text = wrong.run(mpi_job.USAGE)
    assert "exit-signals: 'SIGUSR3' is not one of" in text and "SIGTERM" in text, text
    assert not wrong.folder.exists()


def check_products(arguments):
    """Signals that arrive in the middle of matrix products leave the run whole: a handler on the
    stack of oneDNN's sgemm would not."""
    program = mpi_job.program_of(arguments, "products", "--train-iters", "100000", "--hidden-size",
                                 "256", "--ffn-hidden-size", "768", "--num-attention-heads", "4",
                                 "--seq-length", "128", "--global-batch-size", "32")
    for _ in range(3):
        job = program.start()
        job.wait_for("most of any rank")
        job.wait_for(" iteration ")
        for _ in range(60):
            job.signal(signal.SIGUSR1, job.ranks())
            time.sleep(0.005)
        assert "stopped by a signal after step" in job.end(mpi_job.STOPPED)
        mpi_job.check_readable(mpi_job.checkpoint(program.save, mpi_job.complete(program.save)[-1]))


def check_duration(arguments):
    """The run is over, saved, before its time is; the same command goes on."""
    seconds = 3
    program = mpi_job.program_of(arguments, "duration", "--train-iters", "1000000",
                                 "--save-interval", "1000000", "--log-interval", "1",
                                 "--exit-duration-in-mins", str(seconds / 60))
    newest = 0
    for _ in range(2):
        job = program.start()
        job.wait_for("most of any rank")
        begin = time.monotonic()
        job.wait_for("successfully saved checkpoint")
        taken = time.monotonic() - begin
        text = job.end(mpi_job.STOPPED)
        print(f"--exit-duration-in-mins {seconds / 60}: saved after {taken:.2f} s", flush=True)
        assert "--exit-duration-in-mins is nearly over" in text, text
        assert taken <= seconds, taken
        assert mpi_job.last_resume(job.lines) == (newest or None)
        before, newest = newest, mpi_job.complete(program.save)[-1]
        assert newest == mpi_job.steps_of(job.lines)[-1] > before


def main():
    arguments = mpi_job.test_arguments(__doc__)
    for check in (check_training, check_before_first_step, check_evaluation, check_chosen_signals,
                  check_products, check_duration):
        begin = time.monotonic()
        check(arguments)
        print(f"{check.__name__}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
