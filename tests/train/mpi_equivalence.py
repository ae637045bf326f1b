#!/usr/bin/env python3
"""The whole program on MPI ranks: every layout trains the model that one rank trains with the same
global batch. Losses, gradient norms, validation losses and weights are compared, weights are read
back on other meshes, and illegal layouts are refused with nothing written.

usage: mpi_equivalence.py PHALANX MPIEXEC FOLDER
"""
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

STEPS, BATCH, POSITIONS, VOCABULARY = 6, 8, 32, 384
OPTIONS = f"""--mock-data --train-iters {STEPS} --global-batch-size {BATCH} --seq-length {POSITIONS}
--num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 4 --num-query-groups 2
--phd-copies 2 --phd-window 4 --phd-chunk 8 --vocab-size 257 --lr 0.01 --lr-warmup-iters 2
--threads 1 --eval-interval 3 --eval-iters 2 --peak-tflops 1 --device cpu
--tokenizer-type Bytes""".split()
MOE = "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32".split()
TP, PP, CP = (f"--{axis}-parallel-size" for axis in ("tensor-model", "pipeline-model", "context"))
EP, EXPERT_TP = "--expert-model-parallel-size", "--expert-tensor-parallel-size"
SP = "--sequence-parallel"

# Name of the reference, options of the layout; four ranks each.
LAYOUTS = {
    "dp4": ("dense", []),
    "tp2_sp_pp2": ("dense", [TP, "2", SP, PP, "2"]),
    "cp2_tp2": ("dense", [CP, "2", TP, "2"]),
    "tp4": ("dense", [TP, "4"]),
    "interleaved_recompute": ("dense", [PP, "2", "--num-virtual-stages-per-pipeline-rank", "2",
                                        "--recompute", "layer"]),
    "zero_bubble_cp2": ("dense", [PP, "2", "--pipeline-schedule", "zero-bubble", CP, "2",
                                  "--recompute", "attention"]),
    "uneven_pp4": ("dense", [PP, "4", "--pipeline-layout", "1,2,1,0"]),
    "ep4": ("moe", [EP, "4"]),
    "ep2_tp2_sp_pp2": ("moe", [EP, "2", TP, "2", SP, PP, "2"]),
    "ep2_expert_tp2": ("moe", [EP, "2", EXPERT_TP, "2"]),
}
MODELS = {"dense": [], "moe": MOE}

# Options of an illegal layout, and what must be said of it: all of it, at once.
REFUSED = (
    ([TP, "3"], ["does not divide the number of ranks 4", "nearest"]),
    ([PP, "4", "--num-virtual-stages-per-pipeline-rank", "2", "--recompute", "sometimes"],
     ["more than num-layers 4", "'sometimes'"]),
    ([CP, "4"], ["seq-length 32", "try seq-length 64"]),
    ([*MOE, TP, "2", EP, "3"], ["needs sequence-parallel", "expert-model-parallel-size 3"]),
    ([PP, "2", "--pipeline-layout", "3,2"], ["pipeline-layout 3,2"]),
)


def run(command, environment, code=0):
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Program:
    def __init__(self, program, launcher, folder):
        self.program, self.launcher, self.folder = program, launcher, folder
        self.answers = {}  # of runs on one rank, by name: (evaluation loss, text)
        # Test machines have few cores and run as root in containers.
        self.environment = dict(
            os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_mpi_yield_when_idle="1",
            OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

    def __call__(self, ranks, *arguments, code=0):
        command = [self.program, *arguments]
        if ranks > 1:
            command = [self.launcher, "-n", str(ranks), *command]
        return run(command, self.environment, code)

    def train(self, name, ranks, precision, options):
        """Losses, gradient norms and validation losses of a run."""
        folder = self.folder / name
        out = self(ranks, "train", "--run-dir", str(folder), "--precision", precision, *OPTIONS,
                   *options).stdout
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [record for record in records if "lm_loss" in record]
        assert [record["iteration"] for record in steps] == list(range(1, STEPS + 1)), steps
        validation = [record["validation_loss"] for record in records
                      if "validation_loss" in record]
        assert len(validation) == 2, "the run did not evaluate"
        if PP in options:
            bubbles = [record for record in records if "measured_bubble" in record]
            assert len(bubbles) == 1 and 0 < bubbles[0]["predicted_bubble"] < 1, bubbles
            assert "stage 1 on pipeline rank 1" in out, out
        return [record[key] for key in ("lm_loss", "grad_norm") for record in steps] + validation

    def evaluate(self, name, ranks, *options):
        out = self(ranks, "evaluate", "--load", str(self.folder / name), *options).stdout
        return float(re.search(r"validation loss ([0-9.]+)", out).group(1))

    def generate(self, name):
        return self(1, "generate", "--load", str(self.folder / name), "--prompt", "abc",
                    "--max-new-tokens", "6", "--temperature", "0").stdout


    def answers_of(self, name):
        if name not in self.answers:
            self.answers[name] = (self.evaluate(name, 1), self.generate(name))
        return self.answers[name]


def worst_difference(a, b):
    assert len(a) == len(b)
    return max(abs(x - y) / abs(x) for x, y in zip(a, b))


def tolerance(epsilon):
    # c * eps * sqrt(terms), as in tests/train/train_step_test.cpp.
    return 16 * epsilon * math.sqrt(BATCH * POSITIONS * VOCABULARY)


def check_weights(program, name, reference, precision):
    """Weights of a run on a mesh are those of one rank: in fp64 the same elements; in fp32, where
    AdamW can make a whole update of rounding, the same evaluation and the same text."""
    if precision == "fp32":
        (loss, text), (expected_loss, expected_text) = map(program.answers_of, (name, reference))
        assert text == expected_text
        assert abs(loss - expected_loss) <= 1e-6 * expected_loss, (loss, expected_loss)
        return
    files = [str(program.folder / run_name / "weights.h5") for run_name in (reference, name)]
    # The configuration kept in the file names the layout, so it differs; no dataset may.
    compared = subprocess.run(["h5diff", "-d", "1e-9", *files], capture_output=True, text=True,
                              check=False)
    assert compared.returncode < 2 and "dataset:" not in compared.stdout, files


def check_layouts(program):
    single = {name: LAYOUTS[name] for name in ("tp2_sp_pp2",)}
    for precision, epsilon, layouts in (("fp64", 2.0**-52, LAYOUTS), ("fp32", 2.0**-23, single)):
        references = {model: program.train(f"{model}_{precision}", 1, precision, MODELS[model])
                      for model in sorted({model for model, _ in layouts.values()})}
        for values in references.values():
            assert values[STEPS - 1] < 0.9 * values[0], "the run did not learn"
        for name, (model, options) in layouts.items():
            run_name = f"{name}_{precision}"
            values = program.train(run_name, 4, precision, [*MODELS[model], *options])
            worst = worst_difference(references[model], values)
            print(f"{run_name}: worst relative difference {worst:.2e}, "
                  f"tolerance {tolerance(epsilon):.2e}", flush=True)
            assert worst <= tolerance(epsilon), (references[model], values)
            check_weights(program, run_name, f"{model}_{precision}", precision)


def check_loading(program):
    """Weights load on any mesh; generate says that it is for one rank."""
    alone = program.evaluate("dense_fp32", 1)
    for options in ([], [TP, "2", PP, "2"], [CP, "2"]):
        loss = program.evaluate("tp2_sp_pp2_fp32", 4, *options)
        assert abs(loss - alone) <= 1e-6 * alone, (options, loss, alone)
    refused = program(1, "generate", "--load", str(program.folder / "dense_fp32"), "--prompt", "a",
                      TP, "2", code=2)
    assert "leave the option out" in refused.stderr, refused.stderr


def check_refusals(program):
    folder = program.folder / "refused"
    for options, texts in REFUSED:
        refused = program(4, "train", "--run-dir", str(folder), *OPTIONS, *options, code=2)
        assert all(text in refused.stderr for text in texts), (texts, refused.stderr)
        assert not folder.exists(), options


def check_verify_layout(program):
    folder = program.folder / "verified"
    for options in ([TP, "2", SP, PP, "2"], [*MOE, EP, "2", CP, "2"]):
        out = program(4, "train", "--run-dir", str(folder), *OPTIONS, *options,
                      "--verify-layout").stdout
        assert out.startswith("layout verified: 4 rank(s)"), out
        assert not folder.exists(), "a verification writes nothing"


def main(program, mpiexec, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for check in (check_layouts, check_loading, check_refusals, check_verify_layout):
        check(Program(program, mpiexec, folder))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
