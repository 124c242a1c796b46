"""Unpacking an engine's archive, against ``tar xf``: at most 1.3 times as long.

The archive has 300 MB in the layout of OVMS's releases: libraries that compress about as well as libraries do. Both
unpack to the same disk in turn; medians of five.
"""

import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

from _smoke import sized

from ovms_kernel.fetch.archive import extract

ARCHIVE_SIZE = sized(300 << 20, 1 << 20)
ROUNDS = sized(5, 1)


def make(path: Path) -> None:
    """Write the archive: libraries of 40 MB, half of each incompressible, half of it code-like repetition."""
    source = random.Random(1)
    with tarfile.open(path, "w:gz", compresslevel=6) as tar:
        number = 0
        while path.stat().st_size < ARCHIVE_SIZE:
            blocks = [source.randbytes(2048) + source.randbytes(64) * 32 for _ in range(sized(10_000, 100))]
            data = b"".join(blocks)
            info = tarfile.TarInfo(f"ovms/lib/lib{number}.so")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
            for small in range(100):
                info = tarfile.TarInfo(f"ovms/lib/python/package{number}/module{small}.py")
                info.size = 4000
                tar.addfile(info, BytesIO(data[:4000]))
            number += 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "ovms.tar.gz"
        archive.touch()
        make(archive)
        ours: list[float] = []
        tar: list[float] = []
        for _ in range(ROUNDS):
            into = Path(folder) / "into"
            into.mkdir()
            began = time.perf_counter()
            subprocess.run(["tar", "xf", archive, "-C", into], check=True)
            tar.append(time.perf_counter() - began)
            shutil.rmtree(into)
            began = time.perf_counter()
            written = extract(archive, into, lambda _: None)
            ours.append(time.perf_counter() - began)
            shutil.rmtree(into)
        mine, theirs = statistics.median(ours), statistics.median(tar)
        print(f"archive {archive.stat().st_size >> 20} MiB, unpacked {written >> 20} MiB")
        print(f"ours {mine:.2f} s, tar {theirs:.2f} s, ratio {mine / theirs:.2f} (at most 1.3)")


if __name__ == "__main__":
    main()
