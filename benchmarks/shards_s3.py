"""Shards from S3 on the loopback against the same shards on the disk: requests, bytes, images a second.

    python benchmarks/shards_s3.py FOLDER_OF_SHARDS [--images 4000] [--turns 3] [--json FILE]

The server is moto's, a process of its own (`pip install 'depthjepa[development]'`). Images are decoded and cropped as
in training, by one process. Cold: nothing is kept yet. Warm: every piece is on this machine's disk. Disk and warm take
turns, and their seconds are those of the processor: what else the machine does counts for neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def server(log: Path) -> Iterator[None]:
    """Serve S3 until the end of the block, and let this process find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=file
        )
    os.environ |= {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def images_per_second(root: str, images: int, seed: int, clock: Callable[[], float]) -> float:
    """Draw training batches of 64 from a root, in the order of an epoch."""
    from depthjepa.data.config import DataConfig
    from depthjepa.data.loading import TrainingBatches, open_source

    data = DataConfig(root=root, image_size=112, memory_gib=0, window_gib=0.05)
    source = open_source(data, "train")
    batches = TrainingBatches(
        source=source, data=data, masks=None, grid=(7, 7), seed=seed, batch_size=64, steps=images // 64
    )
    begun = clock()
    count = sum(len(batch.index) for batch in batches)
    return count / (clock() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, server(Path(place) / "log"):
        import s3fs

        os.environ["DEPTHJEPA_CACHE"] = str(Path(place) / "cache")
        fs = s3fs.S3FileSystem()
        fs.mkdir("bench")
        size = 0
        for path in sorted(options.folder.glob("*")):
            if path.suffix in (".tar", ".txt"):
                fs.put_file(str(path), f"bench/{path.name}")
                size += path.stat().st_size if "train" in path.name and path.suffix == ".tar" else 0
        asked = lambda: len(re.findall(r'"GET \S+\.tar HTTP', (Path(place) / "log").read_text()))  # noqa: E731

        from depthjepa.data.prepare.index import prepare_index

        said = prepare_index("s3://bench")
        before = asked()
        cold = images_per_second("s3://bench", options.images, 0, time.perf_counter)
        requests = asked() - before
        disk, warm = [], []
        for turn in range(options.turns):
            disk.append(images_per_second(str(options.folder), options.images, turn, time.process_time))
            warm.append(images_per_second("s3://bench", options.images, turn, time.process_time))
        figures: dict[str, Any] = {
            "index": said,
            "megabytes": size / 1e6,
            "requests_to_index_all_splits": before,
            "cold": {"images_per_second": cold, "requests": requests, "requests_per_megabyte": requests / (size / 1e6)},
            "disk_images_per_second": statistics.median(disk),
            "warm_images_per_second": statistics.median(warm),
            "warm_to_disk": [one / other for one, other in zip(warm, disk, strict=True)],
        }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
