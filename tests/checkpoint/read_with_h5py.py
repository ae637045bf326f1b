#!/usr/bin/env python3
"""Other programs read checkpoints: h5py and h5dump on a folder, after it has been moved.

    read_with_h5py.py SAMPLE_CHECKPOINT FOLDER

SAMPLE_CHECKPOINT is the program that writes the folder; what it writes is described in
sample_checkpoint.h.
"""
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy

TENSORS = {"embedding.weight": (37, 24), "layers.00.norm.weight": (119,),
           "layers.03.mlp.gate.weight": (64, 48), "layers.03.one": (1, 1), "output.weight": (96, 7)}
PARTS = ["", "optimizer.exp_avg/", "optimizer.exp_avg_sq/"]
SHARDS = ["shard_00000.h5", "shard_00001.h5", "shard_00002.h5"]


def expected(tensor, part):
    shape = TENSORS[tensor]
    start = (part << 22) + (list(TENSORS).index(tensor) << 16)
    return (start + numpy.arange(numpy.prod(shape))).astype(numpy.float32).reshape(shape)


def check_index(folder):
    with h5py.File(folder / "index.h5", "r") as index:
        assert index.attrs["step"] == "12" and index.attrs["consumed_samples"] == "345"
        assert index.attrs["tokenizer_hash"] == "abc" and index.attrs["config"] == "seed = 1\n"
        for part, prefix in enumerate(PARTS):
            for tensor in TENSORS:
                whole = index[prefix + tensor]
                assert whole.is_virtual and whole.dtype == numpy.float32, tensor
                assert numpy.array_equal(whole[...], expected(tensor, part)), prefix + tensor
        assert len(index) == len(TENSORS) + len(PARTS) - 1, list(index)


def check_shard(path):
    """Every dataset holds its rectangle of its tensor. Returns the number of elements."""
    count = 0

    def visit(name, dataset):
        nonlocal count
        if not isinstance(dataset, h5py.Dataset):
            return
        prefix = name[:name.rfind("/") + 1]
        tensor = name[len(prefix):name.rfind("@")]
        offset = dataset.attrs["offset"]
        assert tuple(dataset.attrs["global_shape"]) == TENSORS[tensor], name
        box = tuple(slice(o, o + s) for o, s in zip(offset, dataset.shape))
        assert numpy.array_equal(dataset[...], expected(tensor, PARTS.index(prefix))[box]), name
        assert dataset.chunks is None and dataset.compression is None, name
        count += dataset.size

    with h5py.File(path, "r") as shard:
        shard.visititems(visit)
    return count


def check_missing_shard(folder):
    (folder / SHARDS[1]).unlink()
    with h5py.File(folder / "index.h5", "r") as index:
        parts = [index["layers.03.mlp.gate.weight"][...], index["embedding.weight"][...]]
    values = numpy.concatenate([part.ravel() for part in parts])
    assert 0 < numpy.isnan(values).sum() < values.size


def main():
    program, folder = sys.argv[1], Path(sys.argv[2])
    moved = folder.with_name(folder.name + "_moved")
    for old in (folder, moved):
        shutil.rmtree(old, ignore_errors=True)
    subprocess.run([program, str(folder)], check=True)
    check_index(folder)
    folder.rename(moved)
    check_index(moved)
    total = sum(check_shard(moved / shard) for shard in SHARDS)
    assert total == len(PARTS) * sum(numpy.prod(shape) for shape in TENSORS.values()), total
    for name in ["index.h5"] + SHARDS:
        text = subprocess.run(["h5dump", "-H", "-p", str(moved / name)], check=True,
                              capture_output=True, text=True).stdout
        assert "mlp.gate.weight" in text, name
        assert ("MAPPING" if name == "index.h5" else "CONTIGUOUS") in text, name
    check_missing_shard(moved)
    shutil.rmtree(moved)


main()
