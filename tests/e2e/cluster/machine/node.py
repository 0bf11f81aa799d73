"""The node: containerd with its network and its images, kubelet and kube-proxy."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.e2e.cluster.machine.control_plane import API, ControlPlane, answers
from tests.e2e.cluster.machine.place import GROUP, NODE, Place

NAME: Final = "node-1"
PODS: Final = "10.244.0.0/24"
DNS: Final = "10.96.0.10"
PAUSE: Final = "localhost/pause"
QUEUE: Final = 98
"""Of netfilter: where kube-network-policies decides about a connection."""
PACKAGES: Final = ("containerd", "runc", "containernetworking-plugins", "iptables", "conntrack")
"""Of Debian."""


class Image(NamedTuple):
    """An image that holds one program and nothing else. Its tag is the build's, so that a new build is rolled out."""

    name: str
    program: str
    path: str


class Node:
    """One node that runs pods."""

    def __init__(self, place: Place, programs: Path, control_plane: ControlPlane) -> None:
        self._place = place
        self._programs = programs
        self._control_plane = control_plane
        self._socket = place.directory / "containerd.sock"

    def up(self) -> None:
        """Start what does not run: the runtime, the kubelet, what makes Services of rules."""
        self._containerd()
        self.load([Image(PAUSE, "pause", "/pause")])
        self._kubelet()
        self._kube_proxy()

    def load(self, images: Sequence[Image]) -> None:
        """Images of our own programs, each as a single layer."""
        there = self._images()
        for image in images:
            if self.tagged(image.name) not in there:
                file = self._place.directory / "image.tar"
                _archive(self.tagged(image.name), image.path, self._programs / image.program, file)
                self.load_archive(file)
                file.unlink()

    def tagged(self, name: str) -> str:
        """The full name of an image of our own programs."""
        return f"{name}:{self._programs.name}"

    def load_archive(self, file: Path) -> None:
        """An image as `docker save` or `podman save` writes it."""
        self._ctr("images", "import", "--no-unpack=false", file)

    def has(self, image: str) -> bool:
        """Whether pods can run it."""
        return image in self._images()

    def _images(self) -> Sequence[str]:
        return self._ctr("images", "ls", "--quiet").split()

    def _ctr(self, *arguments: str | Path) -> str:
        return self._place.node.run("ctr", f"--address={self._socket}", "--namespace=k8s.io", *arguments, timeout=300)

    def _containerd(self) -> None:
        own = self._place.directory / "containerd"
        own.mkdir(exist_ok=True)
        network = self._place.directory / "cni"
        network.mkdir(exist_ok=True)
        (network / "10-pods.conflist").write_text(json.dumps(_network(self._place.directory / "addresses"), indent=1))
        configuration = self._place.directory / "containerd.toml"
        configuration.write_text(f"""version = 2
root = "{own}/root"
state = "{own}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self._socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.tagged(PAUSE)}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""")
        self._place.start("containerd", "containerd", f"--config={configuration}", ready=lambda: self._ctr("version"))

    def _kubelet(self) -> None:
        known = self._control_plane.credentials
        certificate, key = known.server("kubelet-server", NAME, NAME, NODE)
        own = self._place.directory / "kubelet"
        own.mkdir(exist_ok=True)
        resolver = self._place.directory / "resolv.conf"
        resolver.write_text(f"nameserver {DNS}\n")
        configuration = self._place.directory / "kubelet.yaml"
        configuration.write_text(
            json.dumps(self._kubelet_configuration(known.ca, certificate, key, resolver), indent=1)
        )
        self._place.start(
            "kubelet",
            self._programs / "kubelet",
            f"--config={configuration}",
            f"--kubeconfig={known.kubeconfig(API, f'system:node:{NAME}', 'system:nodes')}",
            f"--root-dir={own}",
            f"--cert-dir={own / 'pki'}",
            f"--hostname-override={NAME}",
            f"--node-ip={NODE}",
            "--v=2",
            ready=answers("http://127.0.0.1:10248/healthz"),
        )

    def _kubelet_configuration(self, ca: Path, certificate: Path, key: Path, resolver: Path) -> Mapping[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(ca)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "podLogsDir": "/var/log/pods",
            # Both are what a machine without systemd has.
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "cgroupRoot": f"/{GROUP}",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "serializeImagePulls": False,
        }

    def _kube_proxy(self) -> None:
        self._place.start(
            "kube-proxy",
            self._programs / "kube-proxy",
            f"--kubeconfig={self._control_plane.credentials.kubeconfig(API, 'system:kube-proxy')}",
            "--proxy-mode=iptables",
            f"--hostname-override={NAME}",
            f"--cluster-cidr={PODS}",
            # These are the machine's, and not of this namespace.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            ready=answers("http://127.0.0.1:10256/healthz"),
        )

    def divert(self) -> None:
        """Have each new connection of a pod decided by kube-network-policies; while it does not run, nothing passes.

        It makes such rules itself, with nftables' own queue, which not every kernel has; these need iptables only.
        """
        table = ("-t", "mangle")
        rules = (
            # Of the node itself: the kubelet's probes.
            ("-m", "owner", "--uid-owner", "0", "-j", "ACCEPT"),
            # A resolver sends two questions at once. Queued, both would be the first of their connection, the kernel
            # would drop the second, and it would be asked again after 5 s (bugzilla.netfilter.org, bug 1766).
            ("-p", "udp", "--dport", "53", "-j", "ACCEPT"),
            ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
            ("-s", PODS, "-j", "NFQUEUE", "--queue-num", str(QUEUE)),
            ("-d", PODS, "-j", "NFQUEUE", "--queue-num", str(QUEUE)),
        )
        if "NFQUEUE" not in self._place.node.run("iptables", *table, "-S", "POSTROUTING"):
            for rule in rules:
                self._place.node.run("iptables", *table, "-A", "POSTROUTING", *rule)


def _network(addresses: Path) -> Mapping[str, Any]:
    """A link of its own for each pod: what goes from pod to pod passes the node's rules, as from node to node."""
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(addresses),
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _archive(name: str, path: str, program: Path, file: Path) -> None:
    """One layer with the program at its path and an empty /tmp, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, path.lstrip("/"), program.read_bytes(), 0o755)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    blob = layer.getvalue()
    configuration = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"User": "65532", "Entrypoint": [path], "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(blob).hexdigest()}"]},
        }
    ).encode()
    file_name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    manifest = [{"Config": file_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as tar:
        for member, content in (
            (file_name, configuration),
            ("layer.tar", blob),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(tar, member, content, 0o644)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
