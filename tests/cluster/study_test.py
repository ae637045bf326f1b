#!/usr/bin/python3
"""`phalanx study`: one command runs every point as a job and ends with a report. Stopped while it
waits, it is entered again and queues nothing twice; what cannot run is shown as that.

usage: study_test.py PHALANX --folder FOLDER --port PORT
"""
import csv
import re
import signal
import statistics
import xml.etree.ElementTree

import testbed
from testbed import mpi_job

STEPS, WARMUP = 23, 3
OPTIONS = [*mpi_job.TINY, "--train-iters", str(STEPS), "--global-batch-size", "8",
           "--save-interval", "0"]


def command(arguments, folder, *options):
    return [arguments.phalanx, "study", "--study-dir", str(folder), *options, "--", *OPTIONS]


def rows(folder):
    """Of report.csv, by point."""
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def queued(cluster):
    """Numbers of all jobs that Slurm remembers."""
    return sorted(int(job) for job in cluster.run("squeue", "-h", "-t", "all", "-o", "%A").split())


def check_page(folder, points):
    """The page is well-formed, names every point, and needs nothing beside itself."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    xml.etree.ElementTree.fromstring(page.replace("<!DOCTYPE html>", ""))
    loaded = re.findall(r"""(?:src|href)=["'](?!#)[^"']*|@import|url\([^#)]*""", page)
    assert not loaded, loaded
    assert all(point in page for point in points) and page.count("<svg") >= 2, page[:2000]


def check_figures(folder, row):
    """The median speed in the table is the one of the point's own records."""
    path = folder / row["point"] / "metrics.jsonl"
    records = testbed.json_lines(path)
    rates = [record["tokens_per_second"] for record in records if "lm_loss" in record][WARMUP:]
    assert len(rates) == int(row["steps_measured"]) == STEPS - WARMUP, row
    assert abs(float(row["tokens_per_second_median"]) - statistics.median(rates)) <= 0.1, row
    for name, value in row.items():
        if name.endswith("_measured") and name.startswith("bytes_"):
            assert value == row[name.removesuffix("measured") + "predicted"], (name, row)


def check_three_points(arguments, cluster):
    """Stopped after the first job was queued, entered again, done; entered again, nothing new."""
    folder = arguments.folder / "strong"
    words = command(arguments, folder, "--nodes", "1,2,4", "--strong")
    study = cluster.start(*words)
    testbed.wait_for(lambda: queued(cluster), "first point's job")
    study.signal(signal.SIGINT, [study.process.pid])  # `testbed run` has become the command
    study.end()
    cluster.run(*words, timeout=120)
    found = rows(folder)
    assert [(row["nodes"], row["state"]) for row in found] == [
        ("1", "done"), ("2", "done"), ("4", "done")], found
    assert float(found[0]["efficiency_percent"]) == 100, found[0]
    for row in found:
        check_figures(folder, row)
        print(row["point"], row["tokens_per_second_median"], "tokens/s", row["efficiency_percent"],
              "% efficiency")
    check_page(folder, [row["point"] for row in found])
    jobs = queued(cluster)
    assert len(jobs) == 3, jobs
    cluster.run(*words)
    assert queued(cluster) == jobs, "the finished study queued something"


def check_impossible_point(arguments, cluster):
    """8 nodes of 4: the others run, the report says why this one did not."""
    folder = arguments.folder / "weak"
    cluster.run(*command(arguments, folder, "--nodes", "2,8", "--weak"), code=None, timeout=120)
    found = {row["nodes"]: row for row in rows(folder)}
    assert found["2"]["state"] == "done", found
    assert found["8"]["state"] == "impossible" and "4 nodes" in found["8"]["cause"], found["8"]
    check_page(folder, [row["point"] for row in found.values()])


def main():
    arguments = testbed.test_arguments(__doc__)
    with testbed.Testbed(4, arguments.port) as cluster:
        check_three_points(arguments, cluster)
        check_impossible_point(arguments, cluster)


if __name__ == "__main__":
    main()
