#!/usr/bin/env python3
"""The whole program with --device cuda (a GPU, or the emulated one) next to --device cpu: losses and
norms, checkpoints that change the device, evaluation, generation, recorded micro-batches, and what
is said where there is no GPU or too little memory.

usage: device_run.py PHALANX FOLDER

What needs an emulated GPU (less memory than there is, no GPU) runs with phalanx_emulated only. Ends
with 77 where PHALANX finds no GPU, or with 1 there under REQUIRE_GPU=1.
"""
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

STEPS, LAYERS, HIDDEN, POSITIONS, BATCH = 4, 2, 32, 16, 4
OPTIONS = f"""--mock-data --train-iters {STEPS} --global-batch-size {BATCH} --seq-length {POSITIONS}
--num-layers {LAYERS} --hidden-size {HIDDEN} --ffn-hidden-size 48 --num-attention-heads 2
--num-query-groups 1 --phd-copies 2 --phd-window 4 --phd-chunk 8 --vocab-size 257 --lr 0.01
--lr-warmup-iters 2 --threads 1 --eval-iters 1 --peak-tflops 1 --tokenizer-type Bytes
--z-loss-coeff 0.0001 --save-interval 0""".split()
EPSILON = {"fp32": 2.0 ** -23, "bf16": 2.0 ** -8}
# Written once: roundings of one element's path through a layer, forward and backward.
ROUNDINGS = 16


def tolerance(precision):
    """Relative, of a loss or norm after STEPS updates: every one of the tensors' elements is rounded
    ROUNDINGS times per layer and step, independently, along sums of HIDDEN products."""
    terms = ROUNDINGS * LAYERS * STEPS * (HIDDEN if precision == "fp32" else 1)
    return EPSILON[precision] * math.sqrt(terms)


class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, folder

    def run(self, words, code=0, **environment):
        done = subprocess.run([self.path, *words], capture_output=True, text=True, check=False,
                              errors="replace",
                              env={**os.environ, **environment})
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def train(self, name, options, keep=False, **more):
        run_dir = self.folder / name
        if not keep:
            shutil.rmtree(run_dir, ignore_errors=True)
        return self.run(["train", "--run-dir", str(run_dir), *OPTIONS, *options], **more)

    def numbers(self, name):
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        return [(s["iteration"], s["lm_loss"], s["grad_norm"]) for s in steps if "lm_loss" in s]


def check_close(found, expected, limit, what):
    assert [f[0] for f in found] == [e[0] for e in expected], f"{what}: steps {found} {expected}"
    worst = max(abs(a - b) / abs(b) for f, e in zip(found, expected) for a, b in zip(f[1:], e[1:]))
    assert worst <= limit, f"{what}: differs by {worst:.3g}, rounding explains {limit:.3g}"
    print(f"{what}: largest relative difference {worst:.2g} of {limit:.2g}")


def test_losses(program):
    for precision in ("fp32", "bf16"):
        for device in ("cpu", "cuda"):
            said = program.train(f"{device}_{precision}",
                                 ["--device", device, "--precision", precision])
            assert f"device {device}: " in said, said
        check_close(program.numbers(f"cuda_{precision}"), program.numbers(f"cpu_{precision}"),
                    tolerance(precision), f"cuda next to cpu, {precision}")


def test_checkpoints_change_the_device(program):
    for before, after in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        name = f"{before}_then_{after}"
        save = ["--save-interval", "2", "--precision", "bf16"]
        program.train(name, [*save, "--device", before])  # writes the certificate of step 3 too
        shutil.rmtree(program.folder / name / "checkpoints" / "iter_0000004")
        said = program.train(name, [*save, "--device", after], keep=True)
        assert "resumed from" in said and "resume verified" in said, said
        assert ("bit for bit" in said) == (before == after), said
        check_close(program.numbers(name)[-2:], program.numbers(f"cpu_bf16")[2:],
                    tolerance("bf16"), f"saved on {before}, resumed on {after}")


def test_evaluation_and_generation(program):
    load = ["--load", str(program.folder / "cpu_fp32"), "--eval-iters", "1"]
    losses = {}
    for device in ("cpu", "cuda"):
        said = program.run(["evaluate", *load, "--device", device])
        losses[device] = float(re.search(r"validation loss (\S+)", said)[1])
    check_close([(0, losses["cuda"])], [(0, losses["cpu"])], tolerance("fp32"), "evaluate")
    texts = [program.run(["generate", *load, "--device", device, "--prompt", "ab",
                          "--max-new-tokens", "3", "--temperature", "0"]).split("phalanx: device")[0]
             for device in ("cpu", "cuda")]
    assert texts[0] == texts[1] and texts[0].startswith("ab"), texts


def test_verify_layout(program):
    said = program.train("verified", ["--device", "cuda", "--verify-layout"])
    assert "layout verified" in said, said


def test_recorded_micro_batches(program):
    program.train("recorded", ["--device", "cuda", "--precision", "bf16", "--cuda-graph"])
    assert program.numbers("recorded") == program.numbers("cuda_bf16")
    said = program.train("refused", ["--device", "cpu", "--cuda-graph"], code=2)
    assert "cuda-graph records the work of a GPU" in said, said
    said = program.train("refused", ["--cuda-graph", "--num-experts", "2"], code=2)
    assert "leave cuda-graph out" in said, said


def test_memory(program):
    """A GPU that is too small is refused, and the first option that is named fits it."""
    wide = ["--device", "cuda", "--micro-batch-size", "4"]
    said = program.run(["info", *OPTIONS, *wide])
    needed = float(re.search(r"total on the GPU\s+(\S+)", said)[1])
    small = {"EMULATED_GPU_MEMORY": str(int((needed - 0.1) * 2 ** 20))}
    said = program.train("too_small", wide, code=2, **small)
    assert "lack" in said and "total on the GPU" in said, said
    assert not (program.folder / "too_small" / "metrics.jsonl").exists()
    options = re.search(r"Measured to fit into \d+ MiB per rank: (.*?) \(", said)[1]
    program.train("fits", [*wide, *shlex.split(options)], **small)
    print(f"too small by 0.1 MiB: {options} fits")


def test_no_gpu(program):
    said = program.train("none", ["--device", "cuda"], code=2, EMULATED_GPUS="0")
    assert "no usable GPU" in said and "--device cpu" in said, said
    said = program.train("none", [], EMULATED_GPUS="0")
    assert "device cpu: " in said and "no usable GPU" in said, said


def without_gpu(program):
    """Exit code where there is no GPU to run on."""
    command = [program.path, "train", *OPTIONS, "--device", "cuda", "--run-dir",
               str(program.folder / "probe")]
    said = subprocess.run(command, capture_output=True, text=True)
    if "no usable GPU" not in said.stderr and "no CUDA backend" not in said.stderr:
        return 0
    print(said.stderr)
    return 1 if os.environ.get("REQUIRE_GPU") == "1" else 77


def main():
    os.environ.pop("PHALANX_TEST_DEVICE", None)  # PHALANX would take it for an option
    program = Program(sys.argv[1], pathlib.Path(sys.argv[2]))
    program.folder.mkdir(parents=True, exist_ok=True)
    emulated = pathlib.Path(program.path).name == "phalanx_emulated"
    code = 0 if emulated else without_gpu(program)
    if code:
        sys.exit(code)
    for name, test in list(globals().items()):
        if name in ("test_memory", "test_no_gpu") and not emulated:
            print(f"{name}: not run, it needs an emulated GPU")
        elif name.startswith("test_"):
            test(program)
            print(f"{name}: passed", flush=True)


if __name__ == "__main__":
    main()
