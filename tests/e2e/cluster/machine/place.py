"""Where the cluster is: network and mount namespaces and control groups of its own, one directory for its files.

Nothing of the machine's own network is touched. A process of the cluster outlives the command that started it, and is
found again by its process id and the time of its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskflux.local.console import Trouble
from tests.chart.tools import Missing

DIRECTORY: Final = Path(os.environ.get("CLUSTER_E2E", "/var/lib/taskflux-cluster"))
"""On a real file system: the kubelet measures the one that it is on."""
GROUP: Final = "taskflux-cluster"
CGROUPS: Final = Path("/sys/fs/cgroup")
NODE: Final = "10.250.0.1"
"""The node's address."""
OUTSIDE: Final = "10.251.0.2"
"""The address of the servers outside the cluster, which are in a network namespace of their own behind a link."""
DAEMONS: Final = "daemons"
LAST: Final = 15.0
"""Seconds that a process may take to end."""
LEFT_BY_THE_KUBELET: Final = (
    "/var/log/pods",
    "/var/log/containers",
    "/var/lib/kubelet",
    "/run/containerd",
    "/run/netns",
)
"""Folders that the kubelet, the runtime and the network's plugins name themselves."""

_NODE_NETWORK: Final = f"""
mount --make-rshared /
ip link set lo up
ip link add node0 type bridge
ip address add {NODE}/24 dev node0
ip link set node0 up
ip route add default via 10.250.0.254 dev node0
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
exec sleep infinity
"""
DOMAIN: Final = "outside.test"
NAMES: Final = ("kafka", "postgres", "valkey", "smtp", "msg91")
"""Of the servers outside, by which the cluster's DNS knows them."""
# No name is asked for elsewhere: Kafka looks up its own address at each login.
_OUTSIDE_NETWORK: Final = """
mount --bind hosts /etc/hosts
mount --bind resolv.conf.none /etc/resolv.conf
ip link set lo up
exec sleep infinity
"""


@dataclass(frozen=True)
class Held:
    """A process with namespaces of its own, which last as long as something runs in them."""

    pid: int

    def command(self, *argv: str | Path) -> list[str]:
        """`argv`, run in there; it becomes the very process."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *map(str, argv)]

    def run(self, *argv: str | Path, stdin: str = "", timeout: float = 120.0) -> str:
        """What a command prints that is run in there.

        Raises:
            Trouble: it failed; the text is what it said.
        """
        done = subprocess.run(
            self.command(*argv), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise Trouble(f"{Path(argv[0]).name} {' '.join(map(str, argv[1:]))}: {done.stderr.strip()[-2000:]}")
        return done.stdout


class Place:
    """The namespaces, and the processes in them."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory

    def up(self) -> None:
        """Make what is not there yet.

        Raises:
            Missing: we are not root, or the kernel refuses namespaces; the text says which.
        """
        if os.geteuid() != 0:
            raise Missing("only root makes namespaces and control groups for a node")
        self.directory.mkdir(mode=0o755, exist_ok=True)
        there = self.directory / "there-before.json"
        if not there.exists():
            there.write_text(json.dumps([path for path in LEFT_BY_THE_KUBELET if Path(path).exists()]))
        names = " ".join(f"{name}.{DOMAIN}" for name in NAMES)
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{OUTSIDE} {names}\n")
        (self.directory / "resolv.conf.none").touch()
        _make_groups()
        for name, script in (("node", _NODE_NETWORK), ("outside", _OUTSIDE_NETWORK)):
            if self._pid(name) is None:
                self._spawn(name, ["unshare", "--net", "--mount", "--propagation=private", "sh", "-euc", script], {})
                self._wait_for_namespace(name)
        self._link()

    @property
    def node(self) -> Held:
        """The node's namespaces. Raises Missing if the cluster is not up."""
        return self._held("node")

    @property
    def outside(self) -> Held:
        """Those of the servers outside the cluster; raises as `node`."""
        return self._held("outside")

    def is_up(self) -> bool:
        """Whether the node's namespaces are there."""
        return self._pid("node") is not None

    def enter(self, *arguments: str) -> None:
        """Go on inside the node's namespaces: unless this process is there, it begins anew, with `arguments`."""
        namespaces = ("net", "mnt")
        there = [Path(f"/proc/{self.node.pid}/ns/{each}").readlink() for each in namespaces]
        if there != [Path(f"/proc/self/ns/{each}").readlink() for each in namespaces]:
            sys.stdout.flush()
            command = self.node.command(sys.executable, *sys.orig_argv[1:], *arguments)
            # With other mounts it would begin in the root.
            os.execvp(command[0], [command[0], f"--wdns={Path.cwd()}", *command[1:]])

    def start(
        self,
        name: str,
        *argv: str | Path,
        where: Held | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        ready: Callable[[], object],
        seconds: float = 90.0,
    ) -> bool:
        """Start a process unless the same runs, and wait until `ready` answers without Trouble; whether it is new.

        Args:
            where: its namespaces; the node's.
            user: whom to run as.
            ready: raises Trouble, or OSError, while it does not serve yet.

        Raises:
            Trouble: it ended, or was not ready within `seconds`; the text is the end of its log.
        """
        command = [str(part) for part in argv]
        if user is not None:
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]
        same = _fingerprint(command, environment or {})
        noted = self._noted(name)
        new = not (self._pid(name) and noted.get("same") == same)
        if new:
            self.stop(name)
            self._spawn(name, (where or self.node).command(*command), environment or {}, same)
        deadline = time.monotonic() + seconds
        while True:
            try:
                ready()
                return new
            except (Trouble, OSError) as error:
                if self._pid(name) is None or time.monotonic() > deadline:
                    end = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
                    raise Trouble(f"{name} does not serve: {error}\n{end}") from error
            time.sleep(0.2)

    def stop(self, name: str, seconds: float = LAST) -> None:
        """End a process, if it runs: kindly, and after `seconds` by force."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + seconds
            while (pid := self._pid(name)) is not None and time.monotonic() < deadline:
                os.kill(pid, number)
                _until(lambda pid=pid: not _runs(pid), 1.0)  # type: ignore[misc]
        (self.directory / "processes" / f"{name}.json").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.directory / "log" / f"{name}.log"

    def names(self) -> Sequence[str]:
        """The processes that run, in the order of their start."""
        files = sorted((self.directory / "processes").glob("*.json"), key=lambda file: file.stat().st_mtime)
        return [file.stem for file in files if self._pid(file.stem) is not None]

    def down(self) -> None:
        """End every process of the cluster, and remove all that it leaves. What was there before stays."""
        if not self.directory.exists() and not any(True for _ in _groups()):
            return
        _until(lambda: not _kill_all(), 30.0)
        _remove_groups()
        there = self.directory / "there-before.json"
        kept = json.loads(there.read_text()) if there.exists() else list(LEFT_BY_THE_KUBELET)
        for netns in Path("/run/netns").glob("cni-*"):
            if not os.path.ismount(netns):
                netns.unlink()
        for path in LEFT_BY_THE_KUBELET:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _link(self) -> None:
        """The way between the node and what is outside."""
        if "out0" in self.node.run("ip", "-brief", "link"):
            return
        self.node.run(
            "ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", str(self.outside.pid)
        )
        gateway = OUTSIDE.rpartition(".")[0] + ".1"
        self.node.run("ip", "address", "add", f"{gateway}/24", "dev", "out0")
        self.node.run("ip", "link", "set", "out0", "up")
        self.outside.run("ip", "address", "add", f"{OUTSIDE}/24", "dev", "in0")
        self.outside.run("ip", "link", "set", "in0", "up")
        self.outside.run("ip", "route", "add", "default", "via", gateway)

    def _spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str], same: str = "") -> None:
        """In control groups of the cluster's, in a session of its own."""
        for folder in ("log", "processes"):
            (self.directory / folder).mkdir(exist_ok=True)
        entered = "".join(f"echo $$ > {group}/{DAEMONS}/cgroup.procs; " for group in _groups())
        with self.log(name).open("ab") as output:
            started = subprocess.Popen(
                ["sh", "-c", f'{entered}exec "$@"', name, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_environment(), **environment},
                cwd=self.directory,
                start_new_session=True,
            )
        note = {"pid": started.pid, "born": _born(started.pid), "same": same}
        (self.directory / "processes" / f"{name}.json").write_text(json.dumps(note))

    def _wait_for_namespace(self, name: str) -> None:
        def there() -> bool:
            pid = self._pid(name)
            if pid is None:
                raise Missing(f"no namespaces for the {name}: {self.log(name).read_text()[-500:].strip()}")
            return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"

        if not _until(there, LAST):
            raise Missing(f"no namespaces for the {name}: {self.log(name).read_text()[-500:].strip()}")

    def _held(self, name: str) -> Held:
        pid = self._pid(name)
        if pid is None:
            raise Missing("no cluster is up on this machine: make cluster")
        return Held(pid)

    def _noted(self, name: str) -> Mapping[str, object]:
        file = self.directory / "processes" / f"{name}.json"
        noted: Mapping[str, object] = json.loads(file.read_text()) if file.exists() else {}
        return noted

    def _pid(self, name: str) -> int | None:
        """The process, if it runs and is still the one that was started."""
        pid, born = self._noted(name).get("pid"), self._noted(name).get("born")
        return pid if isinstance(pid, int) and _runs(pid) and _born(pid) == born else None


def _fingerprint(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Of all that decides what a process does: its arguments, and the files of configuration that they name."""
    digest = hashlib.sha256(json.dumps([command, dict(environment)]).encode())
    for part in command:
        file = Path(part.rpartition("=")[2])
        if file.suffix in (".yaml", ".toml", ".properties") and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _environment() -> Mapping[str, str]:
    """What a process gets to see: no settings of whoever called make."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _born(pid: int) -> str | None:
    """When it was started, in ticks since the machine was."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _until(look: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# Control groups -----------------------------------------------------------------------------------------------------


def _hierarchies() -> Iterator[Path]:
    """The one of version 2, or each of version 1 and the unified one beside them."""
    if (CGROUPS / "cgroup.controllers").exists():
        yield CGROUPS
        return
    yield from (each for each in sorted(CGROUPS.iterdir()) if each.is_dir() and not each.is_symlink())


def _groups() -> Iterator[Path]:
    """Ours, in each hierarchy."""
    yield from (each / GROUP for each in _hierarchies() if (each / GROUP).exists())


def _make_groups() -> None:
    for hierarchy in _hierarchies():
        (hierarchy / GROUP / DAEMONS).mkdir(parents=True, exist_ok=True)
        for group in (hierarchy / GROUP, hierarchy / GROUP / DAEMONS):
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty, they let no process in
                file = group / name
                if hierarchy != CGROUPS and file.exists() and not file.read_text().strip():
                    file.write_text((group.parent / name).read_text())


def _kill_all() -> bool:
    """Whether there was anything to kill."""
    found = False
    for group in _groups():
        for file in group.rglob("cgroup.procs"):
            try:
                pids = [int(pid) for pid in file.read_text().split()]
            except OSError:
                continue
            for pid in pids:
                if _runs(pid):
                    found = True
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    return found


def _remove_groups() -> None:
    for group in list(_groups()):
        below = sorted((each for each in group.rglob("*") if each.is_dir()), key=lambda each: -len(each.parts))
        for each in [*below, group]:
            _until(lambda each=each: _removed(each), 5.0)  # type: ignore[misc]


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
