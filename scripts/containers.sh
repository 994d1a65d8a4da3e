#!/usr/bin/env bash
# Containers for the tests and for `make image`: podman from Debian, with a storage of its own, so that
# nothing else on the machine is touched.
#
#   scripts/containers.sh why       nothing if containers run here, else why not; installs nothing
#   scripts/containers.sh install   gets podman from Debian where it is missing and this is root
#   scripts/containers.sh image     builds localhost/proglog:VERSION
#   scripts/containers.sh podman ...  podman, with that storage
#   scripts/containers.sh env       what podman needs in its environment for that
#
# PROGLOG_CONTAINERS is the folder of it all. PYTHON_IMAGE is what the image is built on; unless given, a
# Debian with Python is made by mmdebstrap, and no registry of images is asked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${PROGLOG_CONTAINERS:-${XDG_CACHE_HOME:-$HOME/.cache}/proglog-containers}
packages=(podman runc conmon netavark aardvark-dns nftables mmdebstrap)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

settings() {
    mkdir -p "$folder"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' \
        "$folder/graph" "$folder/run" >"$folder/storage.conf"
    # Limits beyond the machine's own are refused.
    cat >"$folder/containers.conf" <<CONF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$folder/tmp"
[network]
network_config_dir = "$folder/networks"
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=$(ulimit -Hu):$(ulimit -Hu)"]
CONF
    export CONTAINERS_STORAGE_CONF=$folder/storage.conf CONTAINERS_CONF=$folder/containers.conf
    export PODMAN_IGNORE_CGROUPSV1_WARNING=1
}

# What is missing of the programs, in a line.
missing() {
    local program
    for program in podman runc conmon mmdebstrap nft; do
        command -v "$program" >/dev/null || printf '%s ' "$program"
    done
    [ -x /usr/lib/podman/netavark ] || printf 'netavark '
    [ -x /usr/lib/podman/aardvark-dns ] || printf 'aardvark-dns '
}

why() {
    local lacks errors
    [ "$(id -u)" = 0 ] || { echo "this is not root"; return; }
    lacks=$(missing)
    [ -z "$lacks" ] || { echo "missing: ${lacks% }"; return; }
    settings
    errors=$(mktemp)
    # A container of nothing: can its namespaces, its files and its network be made?
    if ! podman network exists proglog-why 2>"$errors"; then
        podman network create proglog-why >/dev/null 2>"$errors" ||
            { echo "no network: $(tail -n 1 "$errors")"; return; }
    fi
    base_image >/dev/null 2>"$errors" || { echo "no base image: $(tail -n 1 "$errors")"; return; }
    podman run --rm --network proglog-why --read-only "$(base_image)" /usr/local/bin/python3 -c pass \
        >/dev/null 2>"$errors" || echo "no container runs: $(tail -n 1 "$errors")"
    rm -f "$errors"
}

install() {
    [ -n "$(missing)" ] || return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    { apt-get update && DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$folder.log" 2>&1 ||
        echo "apt-get could not get podman: $(tail -n 1 "$folder.log")" >&2
}

# A Debian with Python where the official image has it.
base_image() {
    if [ -n "${PYTHON_IMAGE:-}" ]; then
        echo "$PYTHON_IMAGE"
        return
    fi
    local tag=localhost/proglog-base:trixie
    if ! podman image exists "$tag"; then
        mmdebstrap --quiet --variant=essential --include=python3,python3-venv,ca-certificates \
            --customize-hook='ln -s /usr/bin/python3 "$1/usr/local/bin/python3"' \
            trixie "$folder/base.tar" >&2
        podman import --quiet "$folder/base.tar" "$tag" >&2
        rm "$folder/base.tar"
    fi
    echo "$tag"
}

image() {
    settings
    local mounts=() base
    base=$(base_image)
    # Where packages come from, and whom to trust: never by --env, which would stay in the image.
    [ ! -f /etc/pip.conf ] || mounts+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
    [ ! -d /etc/ssl/certs ] || mounts+=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
    podman build --quiet --isolation chroot --network host --pull=never --layers "${mounts[@]}" \
        --build-arg PYTHON_IMAGE="$base" --build-arg VERSION="$version" --timestamp 0 \
        --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
        --tag "localhost/proglog:$version" .
}

mkdir -p "$folder"
case ${1:-} in
    why | install | image) "$1" ;;
    podman) settings && exec "$@" ;;
    env) settings && env | grep -E '^(CONTAINERS_|PODMAN_)' ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
