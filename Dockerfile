# kdep_bench with the packages of requirements.lock, installed as README says.
#
#   docker build -t kdep_bench .                             on the CPU
#   docker build -t kdep_bench --build-arg GPUS=all .        with CUDA: run it with --gpus all
#   docker run --rm -v "$PWD/out/work_dirs:/app/work_dirs" -v "$PWD/out/results:/app/results" \
#     kdep_bench kdep-bench run smoke
#
# The locked PyTorch contains CUDA and runs on a CPU too, so both images have the same packages; GPUS
# says which GPUs of the host are visible in the container. BASE is any image with Python 3.11.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG GPUS=void
ENV NVIDIA_VISIBLE_DEVICES=${GPUS} \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY Makefile LICENSE MANIFEST.in README.md pyproject.toml requirements.lock setup.py ./
COPY kdep_bench kdep_bench
COPY configs configs
COPY tools tools
RUN make install

# A mounted folder must be writable for this user (chown 1000), or run with --user.
RUN useradd --uid 1000 --create-home kdep \
    && mkdir -p work_dirs results \
    && chown kdep work_dirs results
USER kdep
ENV PATH=/app/.venv/bin:${PATH}
CMD ["kdep-bench", "--help"]
