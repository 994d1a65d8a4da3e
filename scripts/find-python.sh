#!/bin/sh
# Prints the path of a Python that is new enough and has its venv module: of the one named, or of
# the first found. Says what to do where there is none.
set -u
for candidate in ${1:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
echo "No Python 3.11 or later with its venv module: tried ${1:-python3.13, 3.12, 3.11, python3}.
Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2
exit 1
