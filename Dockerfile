# depthjepa in a container.
#   docker build -t depthjepa .                                       CUDA and CPU: torch brings CUDA's libraries
#   docker build -t depthjepa --build-arg INDEX=ADDRESS .             CPU alone, a tenth of the size: PyTorch's index of such wheels
#   docker build -t depthjepa --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .      on another base
#   docker run --rm --gpus all -v "$PWD":/work depthjepa train photos data.root=FOLDER --out runs/mine
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG INDEX
ARG EXTRAS=teachers,export,tables,loggers

# CUDA's images of Ubuntu have no Python.
RUN command -v python3 > /dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/depthjepa
ENV PATH=/opt/depthjepa/bin:$PATH
# Before the package, so that a change of its code does not fetch gigabytes again.
RUN pip install --no-cache-dir ${INDEX:+--index-url "$INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir "/source[${EXTRAS}]" && depthjepa --version

# Runs are written where they are mounted, by whoever starts the container (--user "$(id -u):$(id -g)").
WORKDIR /work
ENV MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["depthjepa"]
CMD ["--help"]
