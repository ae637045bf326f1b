#!/usr/bin/python3
"""A node dies in the middle of a step: Slurm gives it up, and the job goes on by itself on the
nodes that are left, with fewer data-parallel ranks, to the losses and weights of a run left alone.

usage: node_failure_test.py PHALANX --folder FOLDER --port PORT [--mode local|namespaces]
                            [--node batch|other]
"""
import math
import subprocess
import time

import slurm_run
import testbed
from testbed import mpi_job

STEPS, BATCH, POSITIONS, VOCABULARY = 40, 6, 16, 384
OPTIONS = ["--train-iters", str(STEPS), "--save-interval", "10", "--global-batch-size", str(BATCH),
           "--precision", "fp64"]
# All ranks stay in their 25th step until the node dies; a resumed run has fewer steps left than
# that.
PAUSE = {"PHALANX_FAULT": "hang:step:25", "PHALANX_FAULT_SECONDS": "600"}


def node_to_kill(run, kind):
    """The job's first node, which runs its script, or its last."""
    nodes = run.cluster.run("scontrol", "show", "hostnames", run.job()["NodeList"]).split()
    assert len(nodes) == 3, nodes
    return int(nodes[0 if kind == "batch" else -1].removeprefix("node"))


def check_same_model(run, reference):
    """Losses, to rounding of sums over a batch's logits, and weights of the run left alone."""
    tolerance = 16 * 2.0**-52 * math.sqrt(BATCH * POSITIONS * VOCABULARY)
    found, expected = mpi_job.losses(run.folder), mpi_job.losses(reference.folder)
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1)), found.keys()
    worst = max(abs(a - b) / abs(a) for step in expected
                for a, b in zip(expected[step], found[step], strict=True))
    print(f"worst relative difference {worst:.1e}, tolerance {tolerance:.1e}")
    assert worst <= tolerance, (expected, found)
    files = [str(folder / "weights.h5") for folder in (reference.folder, run.folder)]
    compared = subprocess.run(["h5diff", "-d", "1e-9", *files], capture_output=True, text=True,
                              check=False)
    assert compared.returncode < 2 and "dataset:" not in compared.stdout, compared


def main():
    arguments = testbed.test_arguments(__doc__, mode=["local", "namespaces"],
                                       node=["other", "batch"])
    with testbed.Testbed(3, arguments.port, arguments.mode) as cluster:
        run = slurm_run.Run(arguments, cluster, "run", *OPTIONS, nodes=3,
                            submit=["--min-nodes", "2"])
        reference = slurm_run.Run(arguments, cluster, "reference", *OPTIONS, nodes=3)
        run.submit(**PAUSE)
        run.wait_for(lambda: run.log().count("PHALANX_FAULT") == 3, "pause of all ranks")
        node = node_to_kill(run, arguments.node)
        cluster.kill(node)
        begin = time.monotonic()
        alone = reference.start_alone()
        run.wait_for_end(timeout=120)
        print(f"ended {time.monotonic() - begin:.1f} s after the end of node{node}")
        alone.end(mpi_job.DONE)
        assert int(run.job()["Restarts"]) >= 1 and run.job()["NumNodes"] == "2", run.said()
        assert "data parallel 2" in run.log() and "data parallel 3" in run.log(), run.log()
        assert run.resumes()[-1] == 20, run.resumes()
        # Told by the start that saw it; where that died with the node, by the next one.
        told = [record.get("nodes_failed", []) + record.get("previous_nodes_failed", [])
                for record in run.ledger()]
        assert [f"node{node}"] in told, run.ledger()
        run.check_all_readable()
        check_same_model(run, reference)


if __name__ == "__main__":
    main()
