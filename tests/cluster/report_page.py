#!/usr/bin/env python3
"""Checks a study's report: report_page.py SAMPLE_PROGRAM FOLDER

The page is well-formed, needs nothing from elsewhere and no scripts, every figure in its tables is the CSV's, every column
has a definition, and points that did not run are shown with their reasons."""
import csv
import re
import subprocess
import sys
import xml.etree.ElementTree as tree
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Tags(HTMLParser):
    """Every element is closed, in order, as a browser reads it."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID or "svg" in self.open, f"<{tag}/> stays open in HTML, line {self.getpos()}"

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()}"


def text_of(element):
    return "".join(element.itertext())


def check_page(page, rows):
    tags = Tags()
    tags.feed(page)
    assert not tags.open, f"not closed: {tags.open}"
    root = tree.fromstring(page.replace("<!DOCTYPE html>", ""))
    names = {element.tag.split("}")[-1] for element in root.iter()}
    assert not names & {"script", "link", "img", "iframe", "object"}, names
    for word in re.findall(r"""(?:href|src|url|@import)[^\s]{0,60}""", page):
        assert "=" not in word and "(" not in word, f"the page loads something: {word}"
    cells = [e for e in root.iter("td") if "data-column" in e.attrib]
    for cell in cells:
        row = rows[cell.attrib["data-point"]]
        column = cell.attrib["data-column"]
        assert text_of(cell) == row[column], (cell.attrib, text_of(cell), row[column])
    shown = {(e.attrib["data-point"], e.attrib["data-column"]) for e in cells}
    for point, row in rows.items():
        for column, value in row.items():
            if value and column not in ("point", "cause", "command"):
                assert (point, column) in shown, f"{point} {column} {value} is not in the page"
    for table in root.iter("table"):
        headings = [text_of(e) for e in table.find("thead").iter("th")]
        assert len(headings) > 1
    defined = [(text_of(e), text_of(d)) for dl in root.iter("dl") for e, d in zip(dl.iter("dt"), dl.iter("dd"))]
    assert all(heading and meaning for heading, meaning in defined), defined
    headings = {text_of(e) for t in root.iter("table") for e in t.find("thead").iter("th")}
    assert headings - {heading for heading, _ in defined} <= {"point", "operation"}, headings
    return root, len(cells)


def main():
    program, folder = sys.argv[1:]
    subprocess.run([program, folder], check=True, stdout=subprocess.DEVNULL, timeout=120)
    raw = Path(folder, "report.csv").read_bytes().decode()
    assert raw.count("\r\n") == raw.count("\n") - raw.replace("\r\n", "").count("\n")
    with open(Path(folder, "report.csv"), newline="") as file:
        rows = {row["point"]: row for row in csv.DictReader(file, strict=True)}
    assert len(rows) == 12 and all(None not in row and None not in row.values() for row in rows.values())
    page = Path(folder, "report.html").read_text()
    root, cells = check_page(page, rows)
    states = [row["state"] for row in rows.values()]
    assert states.count("done") == 8 and states.count("impossible") == 2, states
    assert states.count("failed") == 1 and states.count("queued") == 1, states
    failed = next(row for row in rows.values() if row["state"] == "failed")
    for words in ("exit code 1", '"data & <more>": no such file', "job 17 ended after step 0 of 9"):
        assert words in failed["cause"], failed["cause"]
        assert words in text_of(root), f"{words} is not in the page"
    assert "slurm-17.log" in text_of(root)
    pictures = [e for e in root.iter("figure")]
    assert len(pictures) == 4, len(pictures)
    first = [row for row in rows.values() if row["efficiency_percent"] == "100.0"]
    assert first and first[0]["nodes"] == "1", first
    compared = 0
    for row in rows.values():
        for column, value in row.items():
            if row["state"] == "done" and column.endswith("_measured") and column.startswith("bytes_"):
                predicted = row[column.replace("_measured", "_predicted")]
                assert value == predicted, (row["point"], column, value, predicted)
                compared += bool(value)
    assert compared > 20, compared
    print(f"{cells} cells are the CSV's; {compared} counts of bytes are the formulas'")


if __name__ == "__main__":
    main()
