# Builds the wheel and installs it with detectron2, for a CPU or, with another BASE, for CUDA (docs/docker.md).
ARG BASE=python:3.11-slim

FROM python:3.11-slim AS build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY moco_plugin moco_plugin
COPY configs configs
COPY tools tools
COPY demo demo
COPY benchmarks benchmarks
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# pip's own settings say where packages come from: an index of CPU builds of torch keeps CUDA's libraries out
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
# git and a compiler are what installing detectron2 from its source takes
RUN apt-get update \
    && apt-get install -y --no-install-recommends git g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
# constraints hold versions for Python 3.11 and newer; a base with torch keeps its own
RUN python -c "import torch" 2>/dev/null \
    || pip install --no-cache-dir -c /wheels/constraints.txt torch torchvision
RUN pip install --no-cache-dir setuptools wheel \
    && pip install --no-cache-dir "$(ls /wheels/*.whl)[detectron2,lightly-train,onnx]" \
    && moco-install-detectron2
RUN useradd --create-home moco
USER moco
WORKDIR /home/moco
CMD ["moco-pretrain", "--help"]
