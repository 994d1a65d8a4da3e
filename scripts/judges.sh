#!/bin/sh
# judges.sh FOLDER PROGRAM[=PACKAGE]...
#
# Gets those programs that tests judge by and that are not on the PATH: Debian's, without root, into
# FOLDER; nothing else on this machine changes. Where one cannot be had, FOLDER/PROGRAM.why says why,
# and so does the test run.
set -u
mkdir -p "$1/bin" "$1/lists/partial" "$1/archives/partial"
folder=$(cd "$1" && pwd)
shift

# apt-get with lists and archives of our own. What is installed, and from where, the machine says.
apt() {
    apt-get -qq -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder" \
        -o Dir::Cache::archives="$folder/archives" -o Debug::NoLocking=1 \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=0 \
        -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 "$@" </dev/null 2>&1
}

# Unpacks a package, and those it depends on that are not installed here.
unpack() {
    command -v apt-get >/dev/null || { echo 'apt-get, which would get it, is not here'; return 1; }
    apt --yes --no-install-recommends --download-only install "$1" || return 1
    for archive in "$folder"/archives/*.deb; do
        dpkg-deb --extract "$archive" "$folder/root" && rm "$archive" || return 1
    done
}

# Makes a command that finds the libraries which came with it. `exec`: a signal must reach it.
wrap() {
    for libraries in "$folder"/root/usr/lib/*-linux-*; do :; done
    # What lies beside its own files is no script that looks for them where it is not.
    for found in "$folder"/root/usr/*bin/"$1" "$folder"/root/usr/lib/*/"$1"; do
        [ -x "$found" ] && program=$found
    done
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$libraries" "$program" >"$folder/bin/$1"
    chmod +x "$folder/bin/$1"
    "$folder/bin/$1" --version 2>&1 >/dev/null || "$folder/bin/$1" version 2>&1 >/dev/null ||
        { rm "$folder/bin/$1"; return 1; }
}

missing=
for judge; do
    name=${judge%%=*}
    rm -f "$folder/$name.why"
    command -v "$name" >/dev/null || [ -x "$folder/bin/$name" ] || missing="$missing $judge"
done
[ "$missing" ] || exit 0
echo "Getting the judges of the tests:$missing"
updated=$(command -v apt-get >/dev/null && apt update)
for judge in $missing; do
    name=${judge%%=*}
    why=$(unpack "${judge#*=}" 2>&1 && wrap "$name") ||
        echo "$updated $why" | tr -s '\n' ' ' | cut -c -200 >"$folder/$name.why"
done
