# depthjepa in a container.
#   CPU:   docker build -t depthjepa .
#   CUDA:  docker build -t depthjepa --build-arg TORCH=cu128 .     (run with --gpus all; torch brings CUDA's libraries)
#   on another base, for instance one with a compiler for CUDA: --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
#   docker run --rm -v "$PWD":/work depthjepa train photos data.root=FOLDER --out runs/mine
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH=cpu
ARG EXTRAS=teachers,export,tables,loggers

# CUDA's images of Ubuntu have no Python.
RUN command -v python3 > /dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/depthjepa
ENV PATH=/opt/depthjepa/bin:$PATH
# Before the package, so that a change of its code does not fetch gigabytes again.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/${TORCH} torch torchvision
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir "/source[${EXTRAS}]" && depthjepa --version

# Runs are written where they are mounted, by whoever starts the container (--user "$(id -u):$(id -g)").
WORKDIR /work
ENV MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["depthjepa"]
CMD ["--help"]
