"""Writes data_order.json and two small datasets: the data order of Megatron Core, computed with NumPy.

An independent statement of the algorithm (see data/data_order.h), one token at a time where that is
clearer, with NumPy's own generator, rounding and summation. Run: python3 data_order.py
"""
import json
import math
import os
import struct

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))


def write_dataset(name, documents, dtype, code):
    """`documents`: list of documents, each a list of sequences, each a list of ids."""
    sequences = [sequence for document in documents for sequence in document]
    item = numpy.dtype(dtype).itemsize
    lengths = numpy.array([len(s) for s in sequences], dtype=numpy.int32)
    offsets = numpy.zeros(len(sequences), dtype=numpy.int64)
    offsets[1:] = numpy.cumsum(lengths[:-1], dtype=numpy.int64) * item
    marks = numpy.cumsum([0] + [len(d) for d in documents], dtype=numpy.int64)
    with open(os.path.join(HERE, name + ".bin"), "wb") as stream:
        for sequence in sequences:
            stream.write(numpy.array(sequence, dtype=dtype).tobytes())
    with open(os.path.join(HERE, name + ".idx"), "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(marks)))
        stream.write(lengths.tobytes() + offsets.tobytes() + marks.tobytes())
    return sequences


def split_ranges(text, count):
    shares = numpy.array([float(x) for x in text.split(",")] + [0.0] * 3, dtype=numpy.float64)[:3]
    shares = (shares / numpy.sum(shares)).tolist()
    edges = [0]
    for share in shares:
        edges.append(edges[-1] + share)
    marks = [int(round(edge * float(count))) for edge in edges]
    return [[marks[i], marks[i + 1]] for i in range(3)]


def order(lengths, begin, end, seq, samples, seed):
    """Every array of one dataset's split."""
    indices = numpy.arange(begin, end, dtype=numpy.int32)
    lengths = numpy.array(lengths, dtype=numpy.int32)
    tokens = int(numpy.sum(lengths[indices]))
    epochs, total = 1, tokens
    while samples is not None and total < samples * seq + 1:
        epochs, total = epochs + 1, total + tokens
    separate, before_last = False, 0
    if epochs > 1:
        before_last = ((epochs - 1) * tokens - 1) // seq
        separate = samples - before_last < int(0.80 * ((tokens - 1) // seq))
    state = numpy.random.RandomState(seed)

    def shuffled(values):
        state.shuffle(values)
        return values

    if separate:
        parts = [shuffled(numpy.tile(indices, epochs - 1)), shuffled(indices.copy())]
        documents = numpy.concatenate(parts)
    else:
        documents = shuffled(numpy.tile(indices, epochs))
    # The place of every token in the concatenation; sample i starts at token i * seq.
    places = [(p, o) for p, d in enumerate(documents) for o in range(lengths[d])]
    count = (epochs * tokens - 1) // seq
    starts = [list(places[i * seq]) for i in range(count + 1)]
    if separate:
        shuffle = numpy.concatenate([shuffled(numpy.arange(before_last, dtype=numpy.uint32)),
                                     shuffled(numpy.arange(before_last, count, dtype=numpy.uint32))])
    else:
        shuffle = shuffled(numpy.arange(count, dtype=numpy.uint32))
    return {"lengths": lengths.tolist(), "begin": begin, "end": end, "seq_length": seq,
            "requested": samples, "seed": seed, "epochs": epochs, "separate_last": separate,
            "document_index": documents.tolist(), "sample_index": starts,
            "shuffle_index": shuffle.tolist()}, places, documents


def samples_of(sequences, begin, end, seq, samples, seed):
    """Tokens of every sample, in order."""
    result, places, documents = order([len(s) for s in sequences], begin, end, seq, samples, seed)
    stream = [sequences[documents[p]][o] for p, o in places]
    return [stream[j * seq:j * seq + seq + 1] for j in result["shuffle_index"]]


def blend(weights, size):
    weights = numpy.array(weights, dtype=numpy.float64)
    weights = weights / numpy.sum(weights)
    taken = numpy.zeros(len(weights), dtype=numpy.int64)
    datasets, samples = [], []
    for k in range(size):
        d = int(numpy.argmax(weights * max(float(k), 1.0) - taken.astype(numpy.float64)))
        datasets.append(d)
        samples.append(int(taken[d]))
        taken[d] += 1
    return {"weights": weights.tolist(), "dataset_index": datasets, "sample_index": samples}


def wide_intervals(maximum, seed):
    state = numpy.random.RandomState(seed)
    return {"max": maximum, "seed": seed,
            "values": [int(state.randint(0, maximum + 1, dtype=numpy.int64)) for _ in range(20)]}


def main():
    random = numpy.random.RandomState(7)
    golden = {"numpy": numpy.__version__}
    golden["shuffles"] = []
    for seed, n in [(0, 10), (42, 10), (1234, 300), (2**32 - 1, 65)]:
        values = numpy.arange(n)
        numpy.random.RandomState(seed).shuffle(values)
        golden["shuffles"].append({"seed": seed, "values": values.tolist()})
    golden["intervals"] = [wide_intervals(2**32 + 5, 3), wide_intervals(2**40, 4),
                           wide_intervals(2**62 + 1, 5)]
    golden["normalized"] = []
    for n in [1, 2, 3, 7, 8, 9, 15, 127, 128, 129, 137, 300]:
        weights = random.rand(n) * 10.0**random.randint(-6, 6, n)
        golden["normalized"].append({"weights": weights.tolist(),
                                     "sum": float(numpy.sum(weights))})
    golden["splits"] = [{"split": s, "count": n, "ranges": split_ranges(s, n)}
                        for s in ["949,50,1", "969, 30, 1", "1", "0.5,0.5", "99,0,1", "1,1,1"]
                        for n in [0, 1, 3, 5, 7, 10, 11, 50, 1000, 12345678, 2**31 - 1]]
    lengths = random.randint(0, 30, 40).tolist()
    golden["orders"] = [order(lengths, b, e, s, n, seed)[0] for b, e, s, n, seed in [
        (0, 40, 16, 20, 1234), (0, 40, 16, None, 1234), (0, 40, 16, 70, 1), (0, 40, 16, 40, 1),
        (0, 40, 16, 57, 5), (3, 21, 7, 200, 42), (10, 13, 1, 90, 0), (0, 40, 33, 1, 9),
        (5, 40, 100, 30, 11)]]
    golden["blends"] = [blend(w, n) for w, n in [
        ([0.3, 0.3, 0.4], 200), ([1, 1], 21), ([0.1, 0.2, 0.7], 300), ([5], 7), ([1, 0, 2], 60),
        (random.rand(12).tolist(), 300), ([1 / 3, 1 / 3, 1 / 3], 100)]]

    first = [[random.randint(0, 1000, random.randint(0, 25)).tolist()
              for _ in range(random.randint(0, 3))] for _ in range(30)]
    second = [[random.randint(0, 70000, random.randint(1, 40)).tolist()] for _ in range(12)]
    first = write_dataset("indexed_u16", first, numpy.uint16, 8)
    second = write_dataset("indexed_i32", second, numpy.int32, 4)

    ranges = split_ranges("80,20", len(first))
    golden["train_samples"] = samples_of(first, *ranges[0], 12, 40, 1234)
    golden["valid_samples"] = samples_of(first, *ranges[1], 12, 10, 1234)
    # A blend of both, cut by split, 50 samples wanted.
    mixed = blend([0.7, 0.3], sum(math.ceil(50 * w) for w in [0.7, 0.3]))
    requests = [math.ceil(math.ceil(50 * w) * 1.005) for w in [0.7, 0.3]]
    ranges = [split_ranges("80,20", len(s))[0] for s in [first, second]]
    sources = [samples_of(s, *r, 12, n, 1234)
               for s, r, n in zip([first, second], ranges, requests)]
    golden["blended_samples"] = [sources[d][i] for d, i in
                                 zip(mixed["dataset_index"], mixed["sample_index"])]
    with open(os.path.join(HERE, "data_order.json"), "wt") as stream:
        json.dump(golden, stream, separators=(",", ":"))
        stream.write("\n")


main()
