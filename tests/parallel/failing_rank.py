#!/usr/bin/env python3
"""Runs a command that must end by itself, with an exit code other than 0, saying what went wrong.

usage: failing_rank.py TEXT COMMAND...   TEXT: a part of what the command must print
"""
import subprocess
import sys

SECONDS = 60  # far above what ending a job takes: reaching it means that ranks wait for each other


def main(text, command):
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        sys.exit(f"still running after {SECONDS} s: {error.stdout}")
    print(result.stdout)
    if result.returncode == 0:
        sys.exit("the exit code is 0, but a rank failed")
    if text not in result.stdout:
        sys.exit(f"exit code {result.returncode}, but nothing says: {text}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
