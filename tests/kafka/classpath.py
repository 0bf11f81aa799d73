"""Java, and the jars of the server that pom.xml names."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from taskflux.local.console import Trouble

POM = Path(__file__).with_name("pom.xml")
CACHE = Path(__file__).parents[2] / ".cache" / "kafka"
JAVA_NEEDED = 17  # Kafka 4's server; its clients run on 11
INSTALL = "on Debian: apt-get install openjdk-17-jre-headless maven"
MAVEN_TIMEOUT = 600.0


def java() -> str:
    """The Java to run, of JAVA_HOME or the PATH.

    Raises:
        Trouble: there is none, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if program is None:
        raise Trouble(f"Apache Kafka needs Java {JAVA_NEEDED} or newer, and there is no java here ({INSTALL})")
    banner = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', banner)
    if found is None or int(found[1]) < JAVA_NEEDED:
        version = found[1] if found else "one that does not tell its version"
        raise Trouble(f"Apache Kafka needs Java {JAVA_NEEDED} or newer, and {program} is {version} ({INSTALL})")
    return program


def server_classpath() -> str:
    """The server's jars, as `java -cp` takes them: from the cache, else resolved by Maven from Maven Central.

    Raises:
        Trouble: there is no Maven, or it cannot get them.
    """
    cached = CACHE / f"classpath-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}.txt"
    if (known := _still_there(cached)) is not None:
        return known
    CACHE.mkdir(parents=True, exist_ok=True)
    resolved = cached.with_suffix(f".{os.getpid()}")
    _resolve(resolved)
    resolved.replace(cached)
    known = _still_there(cached)
    if known is None:
        raise Trouble(
            f"Maven wrote a class path with missing jars to {cached}: remove ~/.m2/repository/org/apache/kafka"
        )
    return known


def _still_there(file: Path) -> str | None:
    """The class path noted in `file`, when all its jars exist."""
    if not file.exists():
        return None
    classpath = file.read_text().strip()
    return classpath if all(Path(jar).exists() for jar in classpath.split(os.pathsep)) else None


def _resolve(output: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Trouble(f"Maven resolves Apache Kafka's jars, and there is no mvn here ({INSTALL})")
    goal = ["dependency:build-classpath", "-DincludeScope=runtime", f"-Dmdep.outputFile={output}"]
    try:
        done = subprocess.run(
            [maven, "-q", "-B", "-Dstyle.color=never", "-f", str(POM), *goal],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MAVEN_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Trouble(
            f"Maven could not resolve Apache Kafka within {MAVEN_TIMEOUT:.0f} s: is Maven Central reached?"
        ) from None
    if done.returncode != 0:
        said = next((line for line in done.stdout.splitlines() if "[ERROR]" in line), done.stdout.strip()[:300])
        raise Trouble(
            f"Maven could not resolve Apache Kafka: is Maven Central reached from here? It said: {_plain(said)}"
        )


def _plain(line: str) -> str:
    """A line of Maven's without its mark and colours."""
    return re.sub(r"\x1b\[[0-9;]*m|\[ERROR\]", "", line).strip()[:500]
