# csi-job: one image for a laptop, one machine, and every pod of the chart.
# No CUDA base is needed: torch's wheels bring the CUDA libraries, and the driver is the host's.
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE:-debian:trixie-slim} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy
WORKDIR /build
COPY image/install.sh image/build-packages.txt image/
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    sh image/install.sh image/build-packages.txt
COPY image/bootstrap.lock image/bootstrap.lock
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv bootstrap && bootstrap/bin/pip install --require-hashes -r image/bootstrap.lock
COPY image/requirements.lock image/slim.py image/
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv --without-pip /opt/csi-job \
    && bootstrap/bin/uv pip sync --python /opt/csi-job/bin/python --require-hashes image/requirements.lock \
    && python3 image/slim.py /opt/csi-job
COPY pyproject.toml README.md LICENSE ./
COPY csi_job csi_job
# In a separate folder, so that a change of the source leaves the large layer above untouched.
RUN bootstrap/bin/python -m hatchling build -t wheel -d dist \
    && bootstrap/bin/uv pip install --python /opt/csi-job/bin/python --prefix /opt/source --no-deps --offline \
    --compile-bytecode dist/*.whl

FROM base
# image/packages.txt says why each package is needed.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    --mount=type=bind,source=image/install.sh,target=/mnt/install.sh \
    --mount=type=bind,source=image/packages.txt,target=/mnt/packages.txt \
    sh /mnt/install.sh /mnt/packages.txt && install -d -m 1777 /work && install -d /data
COPY --from=build /opt/csi-job /opt/csi-job
COPY --from=build /opt/source /opt/csi-job
# All caches are under HOME, which any user may write; in a pod a volume is mounted there.
ENV PATH=/opt/csi-job/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp/home XDG_CACHE_HOME=/tmp/home/.cache TORCH_HOME=/tmp/home/torch \
    CUDA_CACHE_PATH=/tmp/home/nv MPLCONFIGDIR=/tmp/home/matplotlib USER=csi-job \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility CSI_JOB_WORK=/work
ARG VERSION=0.1.0
ARG COMMIT=unknown
ENV SOURCE_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title=csi-job \
      org.opencontainers.image.description="Hyperparameter optimization for chest-radiograph models" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${COMMIT}
WORKDIR /work
USER 65532:0
# A batch job reports by its exit code. -s: with `docker run --init`, or a shared process namespace, tini is not PID 1.
HEALTHCHECK NONE
ENTRYPOINT ["tini", "-s", "--", "csi-job"]
CMD ["--help"]
