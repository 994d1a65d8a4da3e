#!/usr/bin/env bash
# Puts an object store that speaks S3 (moto's server) and fsspec's client for it into DIR/store, apart from
# the environment, whose lock they have no part in. Where they cannot be had, DIR/store.why says why.
#
#   scripts/store.sh DIR [PYTHON]
set -euo pipefail
dir=$1 python=${2:-python3}
[ ! -d "$dir/store" ] || exit 0
mkdir -p "$dir"
errors=$(mktemp)
trap 'rm -rf "$errors" "$dir/store.new"' EXIT
if ! "$python" -m pip install --quiet --disable-pip-version-check --target "$dir/store.new" \
    'moto[server]==5.2.1' 's3fs==2026.9.0' 2>"$errors"; then
    tail -n 1 "$errors" >"$dir/store.why"
    echo "no object store can be had: $(cat "$dir/store.why")" >&2
    exit 0
fi
mv "$dir/store.new" "$dir/store"
rm -f "$dir/store.why"
