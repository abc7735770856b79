"""Machines made of namespaces: each its own network, processes, mounts and ssh server.

Needs root on Linux, and the commands unshare, nsenter, ip, sshd and ssh-keygen. Packets go between
the addresses below and nowhere else: the bridge is in a namespace too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

SUBNET = "10.213.77"
CLIENT = f"{SUBNET}.1"
CONNECTIONS = f"/tmp/ray_ssh_{hashlib.sha256(b'root').hexdigest()[:10]}"
"""Where Ray's launcher keeps open connections, by address: the same in every network."""
WAIT_S = 20
COMMANDS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync")


def why_not() -> str | None:
    """Return why machines cannot be made here, or None if they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux, for its namespaces"
    if os.geteuid() != 0:
        return "needs root, to make network, process and mount namespaces"
    missing = [name for name in COMMANDS if find(name) is None]
    if missing:
        return f"needs the commands {', '.join(missing)} (openssh-server, iproute2, rsync)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True
    )
    return f"cannot make namespaces: {tried.stderr.strip()}" if tried.returncode else None


def find(name: str) -> str | None:
    """Return the path of a command, also where only root has it."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Machine:
    """One machine: the first process of its namespaces, and the folder of its own files."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    init: int

    @property
    def home(self) -> Path:
        """Home of its root."""
        return self.folder / "home"

    def inside(self, *command: str, folder: str | Path = "/") -> list[str]:
        """Return a command that runs in its namespaces."""
        spaces = ["--net", "--mount", "--pid", "--uts"]
        return ["nsenter", "--target", str(self.init), *spaces, f"--wd={folder}", *command]

    def processes(self) -> list[psutil.Process]:
        """Return its processes, except for its ssh server."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.init and _space(process.pid) == _space(self.init):
                    found.append(process)
            except OSError:  # it has ended, or belongs to another user
                continue
        return [one for one in found if not _is_ssh(one)]

    def kill(self) -> None:
        """End all of its processes at once, like a power cut."""
        os.kill(self.init, signal.SIGKILL)
        self.process.wait(WAIT_S)


def _space(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/pid").readlink()


def _is_ssh(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("sshd")
    except psutil.NoSuchProcess:
        return True


@dataclass
class Network:
    """A client, which controls clusters, and machines that it reaches by ssh."""

    folder: Path
    """Where the client's commands run."""
    shared: Path
    key: Path
    client: Machine
    machines: dict[str, Machine]
    stack: ExitStack

    def boot(self, name: str, address: str) -> Machine:
        """Switch a machine on; if it was on before, it has its earlier files."""
        made = _machine(name, address, self.folder, self.shared, self.key, self.client)
        self.machines[name] = self.stack.enter_context(made)
        return self.machines[name]

    def run(
        self, *command: object, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the client to its end."""
        given = {"HOME": str(self.client.home), **environment}
        return subprocess.run(
            self.client.inside(*map(str, command), folder=self.folder),
            capture_output=True, text=True, timeout=timeout_s, env=self.environment(given),
        )  # fmt: skip

    def start(
        self, *command: object, log: str | Path, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a command on the client; its output goes to a file."""
        given = {"HOME": str(self.client.home), **environment}
        with Path(log).open("w") as into:
            return subprocess.Popen(
                self.client.inside(*map(str, command), folder=self.folder),
                stdin=subprocess.DEVNULL, stdout=into, stderr=into, env=self.environment(given),
            )  # fmt: skip

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        """Return the client's environment: only a few variables of this process."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "TERM": "dumb", "LANG": "C.UTF-8", "COLUMNS": "200", **given}


@contextmanager
def network(folder: Path, shared: Path, names: Sequence[str]) -> Iterator[Network]:
    """Run a client and machines while entered; ``shared`` is /mnt on all of them."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with ExitStack() as stack:
        client = stack.enter_context(_machine("client", CLIENT, folder, shared, key, None))
        net = Network(folder, shared, key, client, {}, stack)
        for number, name in enumerate(names, 2):
            net.boot(name, f"{SUBNET}.{number}")
        yield net


@contextmanager
def _machine(
    name: str, address: str, folder: Path, shared: Path, key: Path, client: Machine | None
) -> Iterator[Machine]:
    place = folder / name
    if not place.exists():
        _furnish(place, key)
    script = place / "boot.sh"
    script.write_text(_boot(name, address, place, shared, is_client=client is None))
    with (place / "boot.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc",
             "--kill-child", "bash", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )  # fmt: skip
    try:
        init = _first_child(process)
        if client is None:
            _wait(lambda: (place / "ready").exists(), place, process)
        else:
            _plug_in(name, init, client)
            _wait(lambda: _is_up(address, client), place, process)
        yield Machine(name, address, place, process, init)
    finally:
        # With the first process end all others of its namespaces.
        process.kill()
        process.wait(WAIT_S)


def _furnish(place: Path, key: Path) -> None:
    """Create a machine's own files: a home with its key, and the files that sshd requires."""
    home = place / "home"
    for name in ("home/.ssh", "ray", "connections"):
        (place / name).mkdir(parents=True)
    public = key.with_suffix(".pub").read_text()
    (home / ".ssh/authorized_keys").write_text(public)
    for private in (home / ".ssh").iterdir():
        private.chmod(0o600)
    lines = Path("/etc/passwd").read_text().splitlines()
    entries = [line for line in lines if line.split(":")[0] not in ("root", "sshd")]
    entries += [f"root:x:0:0:root:{home}:/bin/bash", "sshd:x:65533:65534::/run/sshd:/bin/false"]
    (place / "passwd").write_text("\n".join(entries) + "\n")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "host_key"], check=True
    )


def give_python(machine: Machine) -> None:
    """Create a venv on a machine that sees the packages of this Python, to save their download."""
    venv = machine.home / "labn/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "seen.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = venv / "bin/ray"
    script.write_text(
        f"#!{venv}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)


def _boot(name: str, address: str, place: Path, shared: Path, *, is_client: bool) -> str:
    """Return the script of a machine's first process, which becomes the ssh server."""
    link = "bridge" if is_client else "eth0"
    create = "ip link add bridge type bridge" if is_client else ""
    route = "" if is_client else f"ip route add default via {CLIENT}"
    last = (
        f"touch {place}/ready; while true; do sleep 3600; done"
        if is_client
        else f"exec {find('sshd')} -D -e -f {place}/sshd_config"
    )
    (place / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey {place}/host_key\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\nMaxStartups 50\n"
        # Ray would end their processes if others on this host use up the memory.
        "SetEnv RAY_memory_monitor_refresh_ms=0\n"
    )
    return textwrap.dedent(
        f"""\
        set -e
        mount --make-rprivate /
        hostname {name}
        mkdir -p /tmp/ray {CONNECTIONS} /run/sshd
        mount --bind {place}/ray /tmp/ray
        mount --bind {place}/connections {CONNECTIONS}
        mount --bind {place}/passwd /etc/passwd
        mount --bind {shared} /mnt
        mount -t tmpfs -o size=2g none /dev/shm
        ip link set lo up
        {create}
        until ip link show {link} >/dev/null 2>&1; do sleep 0.05; done
        ip addr add {address}/24 dev {link}
        ip link set {link} up
        {route}
        {last}
        """
    )


def _first_child(process: subprocess.Popen[bytes]) -> int:
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None, "unshare started nothing"
        time.sleep(0.02)
    return children[0].pid


def _plug_in(name: str, init: int, client: Machine) -> None:
    """Connect a machine to the client's bridge.

    An earlier connection of the machine may still exist: the kernel removes the network of killed
    processes with a delay.
    """
    enter = ["nsenter", "--target", str(client.init), "--net"]
    subprocess.run([*enter, "ip", "link", "delete", name], capture_output=True)
    for command in (
        f"ip link add {name} type veth peer name eth0 netns {init}",
        f"ip link set {name} master bridge",
        f"ip link set {name} up",
    ):
        subprocess.run([*enter, *command.split()], check=True, capture_output=True)


def _is_up(address: str, client: Machine) -> bool:
    probe = f"import socket; socket.create_connection(('{address}', 22), 1)"
    command = client.inside(sys.executable, "-c", probe)
    return subprocess.run(command, capture_output=True).returncode == 0


def _wait(condition: Callable[[], bool], place: Path, process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, (place / "boot.log").read_text()
        time.sleep(0.1)
