#!/usr/bin/env python3
"""Reads a run's TensorBoard events with TensorBoard's own reader and compares them with
metrics.jsonl. Needs `pip install tensorboard`; not part of the suite, because the product and its
tests do without it (tests/train/tensorboard_test.cpp parses the bytes by itself).

usage: check_tensorboard.py RUN
"""
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {"lm loss": "lm_loss", "grad-norm": "grad_norm", "learning-rate": "learning_rate"}


def as_f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def main(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {record["iteration"]: record for record in records if "lm_loss" in record}
    assert steps, "metrics.jsonl has no steps"
    files = sorted((run / "tensorboard").glob("events.out.tfevents.*"))
    assert files, "no event file"
    events = EventAccumulator(str(files[-1]))
    events.Reload()
    for tag, key in TAGS.items():
        scalars = events.Scalars(tag)
        assert len(scalars) == len(steps), f"{tag}: {len(scalars)} events, {len(steps)} steps"
        for scalar in scalars:
            expected = steps[scalar.step][key]
            if expected is None:  # not finite
                assert not math.isfinite(scalar.value)
            else:
                assert scalar.value == as_f32(expected), (tag, scalar, expected)
    print(f"{files[-1].name}: {len(steps)} steps, tags {sorted(events.Tags()['scalars'])}: equal")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
