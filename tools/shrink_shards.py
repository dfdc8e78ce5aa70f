"""Tar shards of photographs, their JPEGs written anew at a lower quality: data that have to travel.

python tools/shrink_shards.py imagenette128 small --quality 55      75 MB become about 50
"""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
from pathlib import Path

from PIL import Image


def shrink(source: Path, out: Path, quality: int) -> int:
    """Write every shard of `source` anew below `out`, and copy what else lies there; return the bytes of `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix != ".tar":
            shutil.copy(file, out / file.name)
            continue
        with tarfile.open(file) as there, tarfile.open(out / file.name, "w") as here:
            for member in there:
                stream = there.extractfile(member)
                assert stream is not None, f"{file}: {member.name} is no file"
                content = stream.read()
                if member.name.endswith(".jpg"):
                    smaller = io.BytesIO()
                    Image.open(io.BytesIO(content)).convert("RGB").save(smaller, "JPEG", quality=quality)
                    content = smaller.getvalue()
                member.size = len(content)
                here.addfile(member, io.BytesIO(content))
    return sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    """Shrink the shards of a folder."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--quality", type=int, default=55, help="of the JPEGs, 1 to 95")
    asked = arguments.parse_args()
    print(f"{shrink(asked.source, asked.out, asked.quality) / 2**20:.1f} MiB in {asked.out}")


if __name__ == "__main__":
    main()
