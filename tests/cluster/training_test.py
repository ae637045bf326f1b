#!/usr/bin/python3
"""`phalanx train` under sbatch and srun: on 2 and on 4 nodes it trains what one rank trains, bit
for bit where the layout is the same; ranks that do not find each other stop and say both numbers.

usage: training_test.py PHALANX --folder FOLDER --port PORT
"""
import math
import subprocess

import testbed
from testbed import mpi_job

STEPS, BATCH, POSITIONS, VOCABULARY = 6, 8, 32, 384
OPTIONS = [*mpi_job.TINY, "--train-iters", str(STEPS), "--global-batch-size", str(BATCH),
           "--seq-length", str(POSITIONS), "--num-layers", "4", "--precision", "fp64"]
TP, PP, CP = (f"--{axis}-parallel-size" for axis in ("tensor-model", "pipeline-model", "context"))
LAYOUTS = {  # name: (nodes, ranks, options)
    "alone": (1, 1, []),
    "nodes2_dp2": (2, 2, []),
    "nodes2_cp2_dp2": (2, 4, [CP, "2"]),
    "nodes2_dp4": (2, 4, []),
    "nodes4_dp4": (4, 4, []),
    "nodes4_tp2_pp2_sp": (4, 4, [TP, "2", PP, "2", "--sequence-parallel"]),
    "nodes4_dp2_tp2_pp2": (4, 8, [TP, "2", PP, "2", "--pipeline-schedule", "zero-bubble"]),
}
# Pairs with the same layout: only where the ranks are differs. Sums of two numbers have one order;
# sums of four go the same way over the same transport.
SAME = [("nodes2_dp2", "mpirun2"), ("nodes2_dp4", "nodes4_dp4")]


def submit(cluster, arguments, name):
    nodes, ranks, options = LAYOUTS[name]
    command = [arguments.phalanx, "train", "--run-dir", str(arguments.folder / name), *OPTIONS,
               *options]
    return cluster.submit("srun " + " ".join(command), f"--nodes={nodes}", f"--ntasks={ranks}",
                          f"--ntasks-per-node={ranks // nodes}")


def train_without_slurm(arguments):
    program = mpi_job.program_of(arguments, "mpirun2")
    subprocess.run([arguments.mpirun, "-n", "2", arguments.phalanx, "train", "--run-dir",
                    str(program.folder), *OPTIONS], check=True, stdout=subprocess.DEVNULL,
                   env=dict(testbed.os.environ, **mpi_job.ENVIRONMENT), timeout=testbed.PATIENCE)


def check_one_rank(arguments):
    """Losses and gradient norms of one rank, to rounding of sums over a batch's logits; weights."""
    tolerance = 16 * 2.0**-52 * math.sqrt(BATCH * POSITIONS * VOCABULARY)
    expected = mpi_job.losses(arguments.folder / "alone")
    assert sorted(expected) == list(range(1, STEPS + 1)), expected
    assert expected[STEPS][0] < 0.95 * expected[1][0], "the run did not learn"
    for name in LAYOUTS:
        found = mpi_job.losses(arguments.folder / name)
        worst = max(abs(a - b) / abs(a) for step in expected
                    for a, b in zip(expected[step], found[step], strict=True))
        print(f"{name}: worst relative difference {worst:.1e}, tolerance {tolerance:.1e}")
        assert found.keys() == expected.keys() and worst <= tolerance, (expected, found)
        files = [str(arguments.folder / run / "weights.h5") for run in ("alone", name)]
        compared = subprocess.run(["h5diff", "-d", "1e-9", *files], capture_output=True, text=True,
                                  check=False)
        # The configuration kept in the file names the layout, so it differs; no dataset may.
        assert compared.returncode < 2 and "dataset:" not in compared.stdout, compared


def check_world(arguments, cluster):
    """Worlds of one are never trained side by side. Open MPI, where it sees that srun gave it no
    PMI, refuses to start by itself; where it does not, each rank is alone."""
    folder = arguments.folder / "worlds_of_one"
    launch = ["srun", "--mpi=none", "--nodes=2", "--ntasks=2"]
    train = [arguments.phalanx, "train", "--run-dir", folder, *OPTIONS]
    assert "direct launched" in cluster.run(*launch, *train, code=1)
    text = cluster.run(*launch, "env", "-u", "SLURM_NODELIST", *train, code=2)
    assert "the launcher started 2 ranks, but MPI sees 1" in text and "--mpi=pmix" in text, text
    assert not folder.exists(), "it wrote something"


def main():
    arguments = testbed.test_arguments(__doc__)
    arguments.mpirun = "mpirun"
    with testbed.Testbed(4, arguments.port, cpus=4) as cluster:
        jobs = [submit(cluster, arguments, name) for name in LAYOUTS]
        train_without_slurm(arguments)
        check_world(arguments, cluster)
        for job in jobs:
            cluster.wait_for_end(job)
    check_one_rank(arguments)
    for run, reference in SAME:
        mpi_job.check_same_end(arguments.folder / run, arguments.folder / reference, STEPS)


if __name__ == "__main__":
    main()
