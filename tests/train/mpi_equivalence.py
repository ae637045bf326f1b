#!/usr/bin/env python3
"""`mpirun -n 4` and `-n 1` with one global batch give the same losses: the whole program, twice.

usage: mpi_equivalence.py PHALANX MPIEXEC FOLDER
"""
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

STEPS, BATCH, POSITIONS, VOCABULARY = 10, 8, 32, 384
OPTIONS = f"""--mock-data --train-iters {STEPS} --global-batch-size {BATCH} --seq-length {POSITIONS}
--num-layers 2 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 2 --phd-copies 2
--phd-window 4 --phd-chunk 8 --vocab-size 257 --lr 0.01 --lr-warmup-iters 2 --threads 1
--eval-interval 5 --eval-iters 2 --peak-tflops 1 --device cpu --tokenizer-type Bytes""".split()


def train(program, launcher, run, precision, environment):
    command = [*launcher, program, "train", "--run-dir", str(run), "--precision", precision, *OPTIONS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "lm_loss" in record]
    assert [record["iteration"] for record in steps] == list(range(1, STEPS + 1)), steps
    validation = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert validation, "the run did not evaluate"
    return [record["lm_loss"] for record in steps] + validation


def main(program, mpiexec, folder):
    # Test machines have few cores and run as root in containers.
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1", OMP_NUM_THREADS="1")
    shutil.rmtree(folder, ignore_errors=True)
    for precision, epsilon in (("fp64", 2.0**-52), ("fp32", 2.0**-23)):
        losses = {}
        for ranks in (1, 4):
            run = folder / f"{precision}_{ranks}"
            run.mkdir(parents=True)
            losses[ranks] = train(program, [mpiexec, "-n", str(ranks)], run, precision, environment)
        # c * eps * sqrt(terms) * scale, as in tests/train/train_step_test.cpp.
        unit = 16 * epsilon * math.sqrt(BATCH * POSITIONS * VOCABULARY)
        assert len(losses[1]) == len(losses[4])
        worst = max(abs(a - b) / a for a, b in zip(losses[1], losses[4]))
        print(f"{precision}: worst relative difference {worst:.2e}, tolerance {unit:.2e}")
        assert worst <= unit, losses
        assert losses[1][-1] < 0.9 * losses[1][0], "the run did not learn"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
