#!/usr/bin/env python3
"""Prints the list kMixed of mesh_list_helpers.cpp: meshes of 8 ranks that together have every legal
triple of choices at least once. Greedy: the mesh with the most triples still missing comes next.
MeshList.CoversAllTriples checks the list against the product's own rules of what is legal."""
from itertools import combinations, product

RANKS = 8
LAYERS, HEADS, GROUPS, POSITIONS, CHUNK = 4, 8, 4, 32, 4
CHOICES = {
    "model": ["cswa2", "swa3", "naive2", "hybrid", "moe", "sparse", "olmo2", "untied", "documents"],
    "tp": ["", "tp", "sp"],
    "pp": ["", "1f1b", "gpipe", "interleaved", "zb"],
    "cp": ["", "cp"],
    "dp": ["", "dp"],
    "ep": ["", "ep"],
    "etp": ["", "etp"],
    "recompute": ["none", "attention", "layer"],
    "kv": ["enough", "fewer"],
}
CHUNKED = {"cswa2", "moe", "sparse", "olmo2", "untied", "documents"}  # cut at multiples of CHUNK


def sizes_of(on, sizes):
    return sizes if on else [1]


def lines_of(c):
    """Lines of words of the choices `c`, one per possible size of every axis."""
    moe = c["model"] == "moe"
    if c["kv"] == "fewer" and not c["tp"] or c["pp"] == "zb" and c["recompute"] == "layer":
        return
    if not moe and (c["ep"] or c["etp"]) or moe and c["tp"] == "tp":
        return
    for tp, pp, cp, dp in product(sizes_of(c["tp"], [2, 4, 8]), sizes_of(c["pp"], [2, 4]),
                                  sizes_of(c["cp"], [2, 4, 8]), sizes_of(c["dp"], [2, 4, 8])):
        step = 2 * cp * (CHUNK if c["model"] in CHUNKED else 1)
        if tp * pp * cp * dp != RANKS or cp > 1 and POSITIONS % step:
            continue
        if c["pp"] == "interleaved" and 2 * pp > LAYERS:
            continue
        for ep, etp in product(sizes_of(c["ep"], [2, 4, 8]), sizes_of(c["etp"], [2])):
            if RANKS // pp % (ep * etp) == 0:
                yield line(c, tp, pp, cp, dp, ep, etp)


def line(c, tp, pp, cp, dp, ep, etp):
    sizes = {"dp": dp, "cp": cp, "tp": tp, "pp": pp, "ep": ep, "etp": etp}
    words = [f"{name}{size}" for name, size in sizes.items() if size > 1]
    if c["tp"] == "sp":
        words.append("sp")
    if c["kv"] == "fewer":
        words.append(f"kv{tp // 2}")
    elif tp > GROUPS:
        words.append(f"kv{tp}")
    words += {"interleaved": ["vp2"], "gpipe": ["gpipe"], "zb": ["zb"]}.get(c["pp"], [])
    if c["recompute"] != "none":
        words.append(f"recompute={c['recompute']}")
    return f"{c['model']}: {' '.join(words)}"


def main():
    number = {}  # of each triple
    meshes = {}  # line -> bits of its triples
    for values in product(*CHOICES.values()):
        triples = combinations(zip(CHOICES, values), 3)
        lines = list(lines_of(dict(zip(CHOICES, values))))
        if not lines:
            continue
        bits = sum(1 << number.setdefault(triple, len(number)) for triple in triples)
        meshes.update((text, bits) for text in lines)
    missing = (1 << len(number)) - 1
    while missing:
        best = max(meshes, key=lambda text: (meshes[text] & missing).bit_count())
        missing &= ~meshes[best]
        print(f'    "{best}",')


if __name__ == "__main__":
    main()
