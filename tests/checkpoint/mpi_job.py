"""`phalanx train` under mpirun for tests that stop, kill and resume it, and what it leaves on disk.

Needs only the system's Python with h5py.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import h5py
import numpy

# Test machines have few cores and run as root in containers.
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
               "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
TINY = """--mock-data --num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 2
--phd-copies 2 --phd-window 4 --phd-chunk 8 --seq-length 16 --global-batch-size 4 --peak-tflops 1
--threads 1 --lr 0.01 --lr-warmup-iters 2""".split()
PATIENCE = 60  # seconds for anything that should take a few
DONE, FAILED, USAGE, STOPPED, FENCED = 0, 1, 2, 75, 76  # launch/exit_codes.h
NEVER = "ended before its next step"  # why a resume cannot be verified


def test_arguments(description):
    """PHALANX --mpirun MPIRUN --folder FOLDER of a test; the folder is made anew."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("phalanx")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    return arguments


def program_of(arguments, name, *options, ranks=2):
    """A run in its own folder of the test's."""
    return Program(arguments.phalanx, arguments.mpirun, ranks, arguments.folder / name,
                   list(options))


@dataclasses.dataclass
class Program:
    """How to start a run: the program, mpirun, ranks, the run folder, further options."""
    phalanx: str
    mpirun: str
    ranks: int
    folder: pathlib.Path
    options: list

    @property
    def save(self):
        return self.folder / "checkpoints"

    def command(self):
        return [self.mpirun, "-n", str(self.ranks), self.phalanx, "train", "--run-dir",
                str(self.folder), *TINY, *self.options]

    def start(self, limits=None, **environment):
        """`limits`: called in the new process before mpirun."""
        return Job(self.command(), environment, limits)

    def run(self, code=DONE, **environment):
        """Runs to the end, which must be with `code`; the text of the run."""
        return self.start(**environment).end(code)


class Job:
    """A started mpirun. What it and its ranks say is read by a thread as it comes."""

    def __init__(self, command, environment, limits=None):
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=dict(os.environ, **ENVIRONMENT, **environment), preexec_fn=limits)
        self.lines = []
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self.news.notify_all()

    def text(self):
        return "\n".join(self.lines)

    def wait_until(self, condition, what):
        """Until condition(lines) holds; the test fails if the job ends before."""
        end = time.monotonic() + PATIENCE
        with self.news:
            while not condition(self.lines):
                # No news for so long that the end of the job may have been missed.
                if not self.news.wait(0.2) and self.process.poll() is not None:
                    self.reader.join()
                    break
                assert time.monotonic() < end, f"no {what} within {PATIENCE} s\n{self.text()}"
            assert condition(self.lines), f"ended without {what}\n{self.text()}"

    def wait_for(self, text):
        self.wait_until(lambda lines: any(text in line for line in lines), f"'{text}'")

    def wait_for_step(self, step):
        self.wait_until(lambda lines: max(steps_of(lines), default=0) >= step, f"step {step}")

    def ranks(self):
        """Process ids of the ranks, in their order: mpirun starts them itself on its machine."""
        found = {}
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) != self.process.pid:
                    continue
                names = dict(variable.partition(b"=")[::2]
                             for variable in (entry / "environ").read_bytes().split(b"\0"))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"OMPI_COMM_WORLD_RANK" in names:  # else it is just being started, or has ended
                found[int(names[b"OMPI_COMM_WORLD_RANK"])] = int(entry.name)
        return [found[rank] for rank in sorted(found)]

    def signal(self, number, pids):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has ended by itself

    def end(self, code=None):
        """Waits for the end, with exit code `code` unless that is None; the text of the run."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL, [*self.ranks(), self.process.pid])
            self.process.wait()
            self.reader.join()
            raise AssertionError(f"no end within {PATIENCE} s:\n{self.text()}") from None
        self.reader.join()  # the pipe closes when the last rank has gone
        assert code is None or self.process.returncode == code, (
            f"exit code {self.process.returncode} instead of {code}:\n{self.text()}")
        return self.text()


def steps_of(lines):
    """Iterations that the lines of a log report."""
    return [int(line.split("iteration")[1].split("/")[0]) for line in lines
            if "] iteration " in line]


def losses(run_folder):
    """iteration -> (loss, gradient norm), the last ones that the run has recorded."""
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {record["iteration"]: (record["lm_loss"], record["grad_norm"])
            for record in records if "lm_loss" in record}


def complete(save):
    """Iterations with a complete checkpoint, in order."""
    return sorted(int(path.parent.name[5:]) for path in save.glob("iter_*/COMMITTED")
                  if path.parent.name[5:].isdigit())


def checkpoint(save, iteration):
    return save / f"iter_{iteration:07d}"


def datasets(path):
    """name -> numpy array of all datasets of an HDF5 file."""
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]})
                        if isinstance(item, h5py.Dataset) else None)
    return found


def check_readable(folder):
    """Every tensor and moment of a checkpoint can be read. A shard that is missing or short would
    show as a wrong size, as a failure to open, or as NaN in the index."""
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        size = (folder / shard["file"]).stat().st_size
        assert size == shard["bytes"], f"{folder}/{shard['file']}: {size} bytes"
        with h5py.File(folder / shard["file"], "r"):
            pass
    tensors = datasets(folder / "index.h5")
    assert len(tensors) > 20 and len(tensors) % 3 == 0, f"{folder}: {sorted(tensors)}"
    bad = [name for name, value in tensors.items() if not numpy.isfinite(value).all()]
    assert not bad, f"{folder}: not finite: {bad}"


def differences(path, other):
    """Names of datasets of two HDF5 files that differ in any bit or are in one of them only."""
    one, two = datasets(path), datasets(other)
    assert one, f"{path} has no dataset"
    same = [name for name in one if name in two and one[name].dtype == two[name].dtype
            and one[name].shape == two[name].shape and one[name].tobytes() == two[name].tobytes()]
    return sorted((one.keys() | two.keys()) - set(same))


def check_same_end(run, reference, iteration):
    """The last checkpoints (weights, both moments) and weights.h5 of two runs are equal."""
    for file in (f"checkpoints/iter_{iteration:07d}/index.h5", "weights.h5"):
        differing = differences(reference / file, run / file)
        assert not differing, f"{run / file} differs from {reference / file}: {differing}"


def listing(folder):
    """Relative path -> checksum of every file below `folder`; folders with "folder"."""
    return {str(path.relative_to(folder)):
            "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))}


def last_resume(lines):
    """Iteration from which a run says it went on; None if it says that it started from scratch."""
    for line in reversed(lines):
        if "resumed from " in line:
            return int(line.split("(iteration ")[1].split(",")[0])
        if "starting from scratch" in line:
            return None
    raise AssertionError("it says neither where it goes on nor that it starts from scratch:\n" +
                         "\n".join(lines))
