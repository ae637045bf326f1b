#!/usr/bin/python3
"""The test cluster itself: up, MPI over its nodes, nodes that fail and return, down with nothing
left over, and what it refuses.

usage: testbed_test.py PHALANX --folder FOLDER --port PORT [--kind local|namespaces|nobody]
namespaces and nobody (everything again, for an ordinary user) need root.
"""
import contextlib
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import testbed

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Something short that eight ranks do together; it writes nothing.
HELLO = [*testbed.mpi_job.TINY, "--global-batch-size", "8", "--train-iters", "2",
         "--verify-layout"]


def processes_of(folder):
    """Command lines of all living processes that belong to the cluster of a folder."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = (entry / "environ").read_bytes().decode(errors="replace")
            if f"TESTBED_PART={folder}:" in names or f"SLURM_CONF={folder}/" in names:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def links():
    """Network interfaces of this machine; a cluster adds none."""
    return {name for _, name in socket.if_nameindex()}


@contextlib.contextmanager
def nothing_left(folder):
    """What comes up within is gone at the end: processes and network interfaces."""
    before = links()
    yield
    left = processes_of(folder)
    assert not left, f"left over: {left}"
    assert links() == before, links() ^ before


def check_life(arguments, mode):
    """Up, MPI over four nodes, power failure and return, slurmd killed and back, down."""
    with nothing_left(testbed.cluster_folder(arguments.port)), \
            testbed.Testbed(4, arguments.port, mode, cpus=3, memory=1234) as cluster:
        status = cluster.testbed("status")
        assert "not running" not in status and status.count(" idle") == 4, status
        described = cluster.run("scontrol", "show", "node", "node4")
        assert "CPUTot=3" in described and "RealMemory=1234" in described, described
        hello(arguments, cluster)
        again = cluster.testbed("up", 2, code=1)
        assert "runs in" in again and "node4" in again, again

        jobs = [cluster.submit("srun sleep 600", f"--nodelist=node{node}") for node in (2, 3)]
        for node in (2, 3):
            testbed.wait_for(lambda node=node: sleepers_of(cluster, node), f"rank on node{node}")
        survivors = sleepers_of(cluster, 3)
        cluster.stop_daemon(3)
        assert "node3      not running" in cluster.testbed("status")
        assert sleepers_of(cluster, 3) == survivors, "a rank went with its slurmd"
        cluster.kill(2)
        assert not sleepers_of(cluster, 2), "a rank outlived its node"
        assert cluster.testbed("kill", 2, code=1).startswith("testbed: node2 does not run")
        begin = time.monotonic()
        cluster.wait_for_down(2)
        print(f"{mode}: node called down {time.monotonic() - begin:.1f} s after its end")
        cluster.start_node(2)
        cluster.start_node(3)
        cluster.run("scancel", *jobs)
        hello(arguments, cluster)
        cluster.submit("srun sleep 600", "--nodes=4")  # ended by `down`


def hello(arguments, cluster):
    """Eight ranks find each other through PMIx and compute together."""
    text = cluster.run("srun", "--nodes=4", "--ntasks=8", arguments.phalanx, "train",
                       "--run-dir", arguments.folder / "hello", *HELLO)
    assert "layout verified: 8 rank(s)" in text, text


def sleepers_of(cluster, node):
    """Living `sleep` of jobs on a node."""
    return [pid for pid in subprocess.run(["pgrep", "-x", "sleep"], stdout=subprocess.PIPE,
                                          text=True, check=False).stdout.split()
            if f"SLURMD_NODENAME=node{node}\0" in environment_of(pid)
            and f"SLURM_CONF={cluster.folder}/" in environment_of(pid)]


def environment_of(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""


def check_refusals(arguments):
    """Missing packages, taken ports, foreign folders, wrong arguments: each said in one line."""
    def refused(*options, code, text, **environment):
        said = testbed.finished([testbed.SCRIPT, "--port", arguments.port, *options], code,
                                environment=environment)
        assert text in said, said

    tools = arguments.folder / "sbin"
    tools.mkdir()
    for tool in pathlib.Path("/usr/bin").iterdir():
        if tool.name not in ("munged", "srun"):
            (tools / tool.name).symlink_to(tool)
    mine = ["--folder", arguments.folder / "cluster"]
    refused(*mine, "up", 2, code=2, PATH=str(tools),
            text="apt-get install --no-install-recommends slurmctld slurmd slurm-client munge\n")
    with socket.create_server(("127.0.0.1", arguments.port + 2)):
        refused(*mine, "up", 3, code=1, text=f"ports in use: {arguments.port + 2};")
    (tools / "lost").touch()
    refused("--folder", tools, "up", 1, code=1, text="is not empty, and no testbed's")
    assert (tools / "lost").exists()
    refused(*mine, "up", 0, code=2, text="number of nodes is '0'")
    refused(*mine, "--mode", "magic", "up", 1, code=2, text="'magic' is neither")
    refused("--folder", "/tmp/two words", "up", 1, code=2, text="--folder '/tmp/two words'")
    refused(*mine, "--cpus", "many", "up", 1, code=2, text="--cpus is 'many'")
    refused(*mine, "status", code=1, text="no cluster in")
    refused(*mine, "down", code=0, text="no cluster runs in")
    refused(code=2, text="cluster/testbed [options] up N")
    refused("--help", code=0, text="cluster/testbed [options] up N")


def check_ended_ups(arguments):
    """Whenever `up` is ended, it or `down` leaves nothing behind; and so does a test that is."""
    folder = testbed.cluster_folder(arguments.port)
    base = [str(testbed.SCRIPT), "--folder", str(folder), "--port", str(arguments.port)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for seconds in (0.1, 0.25):
            with nothing_left(folder):
                with subprocess.Popen([*base, "--until-exit", str(os.getpid()), "up", "3"],
                                      stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL) as process:
                    time.sleep(seconds)
                    process.send_signal(number)
                # A SIGTERM after the last moment is none.
                if number == signal.SIGKILL or process.returncode == 0:
                    testbed.finished([*base, "down"], 0)
    with nothing_left(folder):
        with subprocess.Popen(["sleep", "600"]) as test:
            testbed.finished([*base, "--until-exit", test.pid, "up", "3"], 0)
            assert len(processes_of(folder)) >= 5, processes_of(folder)
            test.kill()
        testbed.wait_for(lambda: not processes_of(folder), "end of the cluster of a killed test")
    shutil.rmtree(folder)


def check_slurmctld_killed(arguments):
    """`down` needs no working Slurm."""
    with nothing_left(testbed.cluster_folder(arguments.port)), \
            testbed.Testbed(2, arguments.port) as cluster:
        cluster.wait_for_state(cluster.submit("srun sleep 600", "--nodes=2"), "RUNNING")
        for line in cluster.testbed("status").splitlines():
            if line.startswith("slurmctld"):
                os.kill(int(line.split()[1]), signal.SIGKILL)
        assert "does not answer" in cluster.testbed("status", code=1)


def check_nobody(arguments):
    """The same for an ordinary user."""
    folder = testbed.cluster_folder(arguments.port).with_name(f"phalanx-nobody-{arguments.port}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    print(testbed.finished([*NOBODY, sys.executable, __file__, arguments.phalanx, "--folder",
                            folder / "runs", "--port", arguments.port], 0, 220,
                           {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}), end="")
    shutil.rmtree(folder)


KINDS = {
    "local": [check_refusals, check_ended_ups, check_slurmctld_killed,
              functools.partial(check_life, mode="local")],
    "namespaces": [functools.partial(check_life, mode="namespaces")],
    "nobody": [check_nobody],
}


def main():
    arguments = testbed.test_arguments(__doc__, kind=list(KINDS))
    for check in KINDS[arguments.kind]:
        check(arguments)


if __name__ == "__main__":
    main()
