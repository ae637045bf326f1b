#!/usr/bin/env python3
"""Enforces the tower of floors on the include lines, and the size rules of every source file.

    include_rules.py [ROOT]       prints one line per violation, exits 1 if there is any
    include_rules.py --self-test  checks that every rule can fail, on small bad trees
"""
import re
import sys
import tempfile
from pathlib import Path

# Floor -> floors it may include besides itself. The first matching folder decides a file's floor.
FLOORS = {
    "kernels/base": [],
    "kernels": ["kernels/base"],
    "parallel": ["kernels", "kernels/base"],
    "data": ["kernels/base"],
    "core/model": ["parallel", "data", "kernels", "kernels/base"],
    "core/checkpoint": ["parallel", "data", "kernels", "kernels/base"],
    "core": ["core/model", "core/checkpoint", "parallel", "data", "kernels", "kernels/base"],
    "cluster": ["core", "core/model", "core/checkpoint", "parallel", "data", "kernels", "kernels/base"],
    "launch": ["cluster", "core", "core/model", "core/checkpoint", "parallel", "data", "kernels", "kernels/base"],
    "tests": ["launch", "cluster", "core", "core/model", "core/checkpoint", "parallel", "data", "kernels",
              "kernels/base"],
}

# Library header (as a prefix) -> floors that may include it. Others are free.
LIBRARIES = {
    "mpi.h": ["parallel", "launch", "tests"],
    "nccl.h": ["parallel"],
    "oneapi/dnnl/": ["kernels", "tests"],
    "dnnl": ["kernels", "tests"],
    "cuda": ["kernels", "parallel", "tests"],
    "hdf5": ["data", "tests"],
    "H5": ["data", "tests"],
    "pcre2.h": ["data", "tests"],
    "utf8proc.h": ["data", "tests"],
    "boost/": ["launch", "tests"],
    "gtest/": ["tests"],
    "gmock/": ["tests"],
}

SUFFIXES = {".h": 200, ".cpp": 400, ".cu": 500, ".cuh": 200}  # most lines of a file
COLUMNS = 100
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
OWN = re.compile(r"^(kernels|parallel|data|core|cluster|launch|tests)/")


def floor_of(path):
    """The floor a path (from the root, with slashes) belongs to, or None."""
    return next((floor for floor in FLOORS if path.startswith(floor + "/")), None)


def check_include(root, path, bracket, target):
    """Violations of one include line, as texts without place."""
    floor = floor_of(path)
    if bracket == "<" and not OWN.match(target):
        allowed = next((floors for prefix, floors in LIBRARIES.items()
                        if target.startswith(prefix)), None)
        if allowed is not None and floor not in allowed:
            return [f"<{target}> belongs to {', '.join(allowed)}, not to {floor}"]
        return []
    if bracket == "<":
        return [f"<{target}> is ours: write it in quotes"]
    if not (root / target).is_file():
        return [f'"{target}" is not a file of the repository: write includes from its root']
    target_floor = floor_of(target)
    if target_floor == floor or target_floor in FLOORS[floor]:
        return []
    return [f'"{target}" is on floor {target_floor}, which {floor} may not include']


def check_text(path, lines):
    """Violations of size and form: (line number, text)."""
    limit = SUFFIXES[Path(path).suffix]
    if path.startswith("kernels/cuda/") and path.endswith(".h"):
        limit = 300  # device code that several kernels share lives in headers
    if len(lines) > limit:
        yield len(lines), f"{len(lines)} lines, at most {limit} are allowed"
    if not lines or not lines[0].startswith(("//", "/*")):
        yield 1, "the first line must be a comment that says what the file is for"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield number, f"{len(line)} columns, at most {COLUMNS} are allowed"


def find_cycle(edges):
    """One cycle of files as a list, or None. Depth-first with an explicit stack of iterators."""
    state = {}
    for start in edges:
        if start in state:
            continue
        state[start] = "open"
        trail = [start]
        stack = [iter(edges[start])]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                state[trail.pop()] = "done"
            elif state.get(step) == "open":
                return trail[trail.index(step):] + [step]
            elif step not in state:
                state[step] = "open"
                trail.append(step)
                stack.append(iter(edges.get(step, ())))
    return None


def check_tree(root):
    """All violations below `root`, each as 'file:line: text'."""
    problems, edges = [], {}
    tops = sorted({floor.split("/")[0] for floor in FLOORS})
    sources = sorted(p for top in tops for p in (root / top).rglob("*") if p.suffix in SUFFIXES)
    for source in sources:
        path = source.relative_to(root).as_posix()
        lines = source.read_text(encoding="utf-8").splitlines()
        problems += [f"{path}:{number}: {text}" for number, text in check_text(path, lines)]
        edges[path] = []
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            edges[path].append(match[2])
            problems += [f"{path}:{number}: {text}"
                         for text in check_include(root, path, match[1], match[2])]
    cycle = find_cycle(edges)
    if cycle:
        problems.append(f"{cycle[0]}:1: includes go round: {' -> '.join(cycle)}")
    return problems, len(sources)


BAD_TREES = [  # (what must be said, {path: text})
    ("may not include", {"kernels/a.h": '// a\n#include "parallel/b.h"\n', "parallel/b.h": "// b\n"}),
    ("may not include", {"data/a.h": '// a\n#include "kernels/b.h"\n', "kernels/b.h": "// b\n"}),
    ("may not include", {"core/model/a.h": '// a\n#include "core/train/b.h"\n',
                         "core/train/b.h": "// b\n"}),
    ("may not include", {"launch/a.cpp": '// a\n#include "tests/b.h"\n', "tests/b.h": "// b\n"}),
    ("may not include", {"kernels/cuda/a.cu": '// a\n#include "data/b.h"\n', "data/b.h": "// b\n"}),
    ("from its root", {"data/a.h": '// a\n#include "b.h"\n', "data/b.h": "// b\n"}),
    ("in quotes", {"data/a.h": "// a\n#include <data/b.h>\n", "data/b.h": "// b\n"}),
    ("belongs to", {"kernels/a.h": "// a\n#include <mpi.h>\n"}),
    ("belongs to", {"core/a.cpp": "// a\n#include <gtest/gtest.h>\n"}),
    ("go round", {"data/a.h": '// a\n#include "data/b.h"\n', "data/b.h": '// b\n#include "data/a.h"\n'}),
    ("201 lines", {"data/a.h": "// a\n" * 201}),
    ("401 lines", {"data/a.cpp": "// a\n" * 401}),
    ("101 columns", {"data/a.h": "//" + "a" * 99 + "\n"}),
    ("first line", {"data/a.h": "#pragma once\n"}),
]
GOOD_TREE = {"kernels/base/a.h": "// a\n#include <vector>\n",
             "data/b.cpp": '// b\n#include <hdf5.h>\n#include "kernels/base/a.h"\n',
             "tests/c.cpp": '// c\n#include <gtest/gtest.h>\n#include "kernels/base/a.h"\n'}


def problems_of(files):
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return check_tree(Path(folder))[0]


def self_test():
    failures = 0
    for expected, files in BAD_TREES + [(None, GOOD_TREE)]:
        problems = problems_of(files)
        right = not problems if expected is None else len(problems) == 1 and expected in problems[0]
        failures += not right
        if not right:
            print(f"expected {expected!r} for {sorted(files)}, got {problems}")
    print(f"include rules self-test: {len(BAD_TREES) + 1 - failures} passed, {failures} failed")
    return failures


def main():
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(1 if self_test() else 0)
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    problems, count = check_tree(root)
    print("\n".join(problems + [f"include rules: {count} files, {len(problems)} violations"]))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
