#!/bin/sh
# Generates proglog/_generated from protos/: betterproto2 messages and the descriptor set that
# server reflection serves. With --check, only says whether what is committed is fresh.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=proglog/_generated
if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc --proto_path=protos \
    --python_betterproto2_out="$out" \
    --python_betterproto2_opt=server_generation=async,client_generation=async \
    --descriptor_set_out="$out/log_v1.fds" --include_imports \
    log/v1/log.proto
if [ "${1:-}" = --check ]; then
    diff -r -x __pycache__ "$out" proglog/_generated ||
        { echo "proglog/_generated is stale: run make proto" >&2; exit 1; }
fi
