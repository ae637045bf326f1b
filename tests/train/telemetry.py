#!/usr/bin/env python3
"""The whole program on four ranks that are told to be on four nodes: the machines are tested before
the first step, a slow node is named, a file RUN/STOP ends the run with a checkpoint and keeps it
from starting, and a run that diverges saves what was before.

usage: telemetry.py PHALANX MPIEXEC FOLDER
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

PATIENCE = 60  # seconds for anything that should take a few
STOPPED, USAGE, DIVERGED = 75, 2, 73  # core/exit_codes.h
NODES = ["node0", "node1", "node2", "node3"]
OPTIONS = """--mock-data --num-layers 2 --hidden-size 32 --ffn-hidden-size 48
--num-attention-heads 2 --phd-copies 2 --phd-window 4 --phd-chunk 8 --seq-length 16
--global-batch-size 8 --peak-tflops 1 --threads 1 --lr-warmup-iters 2 --device cpu
--train-iters 1000000 --save-interval 1000000""".split()


def command(program, launcher, folder, *options):
    """One application context per rank, each with its own node name."""
    rank = [program, "train", "--run-dir", str(folder), *OPTIONS, *options]
    contexts = [["-n", "1", "-x", f"SLURMD_NODENAME={node}", *rank] for node in NODES]
    whole = [launcher, "--oversubscribe", "--bind-to", "none"]
    for number, context in enumerate(contexts):
        whole += ([":"] if number else []) + context
    return whole


def environment(**more):
    # Test machines have few cores and run as root in containers.
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                OMPI_MCA_mpi_yield_when_idle="1", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive",
                **more)


def events(path, name):
    if not path.exists():
        return []
    # The last line may still be on its way.
    lines = [line for line in path.read_text().split("\n")[:-1] if line]
    return [record for record in map(json.loads, lines) if record.get("event") == name]


def wait_for(what, job, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert job.poll() is None, f"the run ended with {job.returncode} before {what}"
        assert time.monotonic() < end, f"no {what} in {PATIENCE} s"
        time.sleep(0.05)


def check_preflight(out, ledger):
    begin = out.index("preflight of 4 node(s)")
    table = out[begin:out.index("iteration", begin)].splitlines()
    for row in ("matrix products", "memory copies", "run folder", "links, each way",
                "links, short messages"):
        assert any(line.strip().startswith(row) for line in table), (row, table)
    (record,) = events(ledger, "preflight")
    assert [node["node"] for node in record["nodes"]] == NODES, record
    for node in record["nodes"]:
        assert all(node[key] > 0 for key in ("gflops", "copy_gbps", "disk_gbps", "link_gbps")), node
    assert 0 < record["seconds"] < 20, record  # 5 where cores are not shared


def check_slow_node_and_stop_file(program, launcher, folder):
    run, ledger = folder / "slow", folder / "slow" / "ledger.jsonl"
    whole = command(program, launcher, run, "--preflight", "on", "--log-interval", "100")
    with open(folder / "slow.out", "w+", encoding="utf-8") as out:
        with subprocess.Popen(whole, stdout=out, stderr=subprocess.STDOUT,
                              env=environment(PHALANX_FAULT="slow:step:1:2",
                                              PHALANX_FAULT_SECONDS="0.05")) as job:
            try:
                wait_for("slow node", job, lambda: events(ledger, "slow_node"))
                (run / "STOP").touch()
                job.wait(PATIENCE)
            finally:
                job.kill()
        out.seek(0)
        text = out.read()
    assert job.returncode == STOPPED, (job.returncode, text)
    slow = events(ledger, "slow_node")
    assert [record["node"] for record in slow] == ["node2"], slow
    assert slow[0]["percent"] > 5, slow
    assert text.count("node2 is slow: its ranks compute") == 1, text
    ranks = events(run / "metrics.jsonl", "ranks")[-1]
    assert ranks["compute"]["slowest_rank"] == 2, ranks
    assert ranks["compute"]["slowest_node"] == "node2", ranks
    assert ranks["compute"]["max"] >= 0.05 > ranks["compute"]["min"], ranks
    check_preflight(text, ledger)

    assert f"because {run}/STOP is there" in text, text
    (end,) = events(ledger, "training_end")
    assert end["reason"] == "stop_file", end
    assert (run / "checkpoints" / f"iter_{end['step']:07d}").is_dir(), end
    again = subprocess.run(whole, capture_output=True, text=True, env=environment(),
                           timeout=PATIENCE, check=False)
    assert again.returncode == USAGE, again
    assert again.stderr.count("STOP is there") == 1, again.stderr
    assert len(events(ledger, "training_begin")) == 1


def check_divergence(program, launcher, folder):
    run = folder / "diverged"
    done = subprocess.run(
        command(program, launcher, run, "--lr", "1e38", "--lr-warmup-iters", "0",
                "--max-skipped-in-row", "3"),
        capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    assert done.returncode == DIVERGED, done
    assert done.stderr.count("the run has diverged") == 1, done.stderr
    assert (run / "checkpoints" / "iter_0000004").is_dir(), done
    (end,) = events(run / "ledger.jsonl", "training_end")
    assert end["reason"] == "diverged", end


def main(program, launcher, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for check in (check_slow_node_and_stop_file, check_divergence):
        begin = time.monotonic()
        check(program, launcher, folder)
        print(f"{check.__name__}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
