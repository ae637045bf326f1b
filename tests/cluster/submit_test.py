#!/usr/bin/python3
"""`phalanx submit`, `status` and `cancel` against a real Slurm: what cannot run is refused before
anything is queued or written, with the reason; a dry run only prints; Slurm absent is said.

usage: submit_test.py PHALANX --folder FOLDER --port PORT
"""
import os
import pathlib
import subprocess

import slurm_run
import testbed

LONG = ["--train-iters", "1000000", "--save-interval", "1000"]


def check_refusals(arguments, cluster):
    """Layouts, nodes and memory that cannot be: exit code 2, every value named, nothing queued."""
    def refused(*texts, options=(), **submission):
        run = slurm_run.Run(arguments, cluster, "refused", *LONG, *options, **submission)
        said = run.submit(code=2)
        missing = [text for text in texts if text not in said]
        assert not missing, (missing, said)
        assert not run.folder.exists(), "something was written"

    refused("tensor-model-parallel-size 3", "4",
            options=["--tensor-model-parallel-size", "3"], ranks_per_node=2)
    refused("num-layers 2", options=["--pipeline-model-parallel-size", "4"], ranks_per_node=2)
    refused("nodes 3 is more than the 2 nodes", nodes=3)
    refused("a node has 900 MiB", "27797 MiB",
            options=["--hidden-size", "2048", "--ffn-hidden-size", "8192", "--num-layers", "24",
                     "--num-attention-heads", "16"])
    assert cluster.run("squeue", "-h", "-t", "all") == "", cluster.run("squeue", "-t", "all")


def check_dry_run(arguments, cluster):
    """The script is printed, is one for bash, and asks for what was asked; nothing else happens."""
    run = slurm_run.Run(arguments, cluster, "dry", *LONG, ranks_per_node=2,
                        submit=["--time", "00:10:00", "--dry-run"])
    script = run.submit()
    script = script[script.index("#!/bin/bash"):]
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --time=00:10:00",
                 "export SLURM_PMIX_FENCE=ring"):
        assert line in script.splitlines(), (line, script)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not run.folder.exists() and cluster.run("squeue", "-h", "-t", "all") == ""


def check_without_slurm(arguments, cluster):
    """A machine without Slurm's commands."""
    run = slurm_run.Run(arguments, cluster, "no_slurm", *LONG)
    tools = arguments.folder / "bin"
    tools.mkdir()
    for tool in pathlib.Path("/usr/bin").iterdir():
        if not tool.name.startswith(("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")):
            (tools / tool.name).symlink_to(tool)
    said = testbed.finished([arguments.phalanx, "submit", "--", "--run-dir", run.folder,
                             *run.options], 2, environment={"PATH": str(tools)})
    assert "sbatch" in said and "PATH" in said, said
    assert not run.folder.exists()


def check_life(arguments, cluster):
    """Submitted, shown, refused a second time while it runs, cancelled, shown again."""
    run = slurm_run.Run(arguments, cluster, "life", *LONG, submit=["--job-name", "my-run"])
    said = run.submit()
    job = str(run.jobs()[-1])
    assert job in said, said
    assert run.job()["JobName"] == "my-run"
    assert job in run.submit(code=2), "a second job for the same folder"
    run.wait_for_step(50)
    status = run.command("status")
    for text in ("RUNNING", job, "tokens/s", "1000000"):
        assert text in status, (text, status)
    print(status)
    run.command("cancel")
    run.wait_for(lambda: run.job()["JobState"] in testbed.ENDED, "end")
    assert run.job()["Restarts"] == "0", run.said()
    testbed.wait_for(lambda: not cluster.ranks(), "end of all ranks")
    status = run.command("status")
    assert "RUNNING" not in status, status
    print(status)
    missing = cluster.run(arguments.phalanx, "status", arguments.folder / "nowhere", code=2)
    assert str(arguments.folder / "nowhere") in missing, missing


def main():
    arguments = testbed.test_arguments(__doc__)
    with testbed.Testbed(2, arguments.port, memory=900, cpus=os.cpu_count()) as cluster:
        check_refusals(arguments, cluster)
        check_dry_run(arguments, cluster)
        check_without_slurm(arguments, cluster)
        check_life(arguments, cluster)


if __name__ == "__main__":
    main()
