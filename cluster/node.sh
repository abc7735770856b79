#!/usr/bin/env bash
# Prepares a machine as a node of a cluster: shared storage, Python, labn, and the environment of
# login shells. `ray up` copies it to every node and runs it there; running it again is safe.
#
#   LABN_SHARED  folder that all nodes share, such as /mnt/labn
#   LABN_NFS     what to mount there, HOST:/PATH; empty if it is mounted already
#   LABN_DATA    folder of the images of the default search; empty: the embedded set
#   LABN_WHEEL, LABN_PYTHON, LABN_RAY, LABN_TORCH  what to install, the same on every node
set -euo pipefail

missing=0
for name in LABN_SHARED LABN_WHEEL LABN_PYTHON LABN_RAY LABN_TORCH; do
  [ -n "${!name:-}" ] && continue
  echo "error: $name: is not set; export it in setup_commands of the cluster's file" >&2
  missing=1
done
for name in LABN_SHARED LABN_NFS LABN_DATA; do
  [[ ${!name:-} == *CHANGE_ME* ]] || continue
  echo "error: $name = ${!name}: is not set; set it at the top of the cluster's file" >&2
  missing=1
done
[ "$missing" = 0 ] || exit 1
home=$HOME/labn
venv=$home/venv

mount_shared() {
  mountpoint --quiet "$LABN_SHARED" && return
  command -v mount.nfs4 >/dev/null || { sudo apt-get update -q; sudo apt-get install -yq nfs-common; }
  sudo mkdir -p "$LABN_SHARED"
  sudo mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,retrans=2,noresvport "$LABN_NFS" "$LABN_SHARED"
  sudo chown "$(id -u):$(id -g)" "$LABN_SHARED"
}

make_venv() {
  [ -x "$venv/bin/python" ] && return
  if command -v "python$LABN_PYTHON" >/dev/null; then
    "python$LABN_PYTHON" -m venv "$venv"
    return
  fi
  command -v uv >/dev/null || python3 -m pip install --quiet --user --break-system-packages uv ||
    python3 -m pip install --quiet --user uv
  PATH=$HOME/.local/bin:$PATH uv venv --quiet --seed --python "$LABN_PYTHON" "$venv"
}

install_labn() {
  local wheel=$home/dist/$LABN_WHEEL
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "$wheel" "ray[default,train,tune]==$LABN_RAY" "torch==$LABN_TORCH"
  # A rebuilt wheel has the same version.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --force-reinstall "$wheel"
}

# Ray's launcher runs every command in a login shell, and needs `python` and `ray` on its path.
write_environment() {
  local interface address
  interface=$(ip -o -4 route show to default | awk '{print $5; exit}')
  address=$(ip -o -4 addr show dev "$interface" | awk '{sub("/.*", "", $4); print $4; exit}')
  cat >"$home/env.sh" <<END
case ":\$PATH:" in *":$venv/bin:"*) ;; *) export PATH="$venv/bin:\$PATH" ;; esac
export LABN_SHARED="$LABN_SHARED"
export LABN_DATA="${LABN_DATA:-}"
export LABN_ADDRESS="$address"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# A host name often stands for 127.0.1.1, which other nodes cannot reach.
export GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface"
export MLFLOW_TRACKING_URI="http://\${RAY_HEAD_IP:-$address}:5000"
END
  local line=". $home/env.sh  # labn"
  grep -qsxF "$line" "$HOME/.bashrc" || printf '%s\n' "$line" >>"$HOME/.bashrc"
}

[ -z "${LABN_NFS:-}" ] || mount_shared
[ -w "$LABN_SHARED" ] || {
  echo "error: LABN_SHARED=$LABN_SHARED: not a folder that $USER can write to on $(hostname);" \
    "mount the shared storage there" >&2
  exit 1
}
chmod 600 "$HOME/.ray/auth_token"
make_venv
install_labn
write_environment
