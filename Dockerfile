# The sidecar's image. The base is any image with Debian's or python.org's Python 3.11 or newer at `python3`.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim

# Built apart, so that neither pip nor the sources get into the image. Whatever is installed beside Rankguard's own wheel
# stands with its hash in requirements.lock (`make lock`), which leaves out what only kubernetes.aio would need.
FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/rankguard
COPY requirements.lock requirements-build.lock ./
RUN python3 -m pip --python /opt/rankguard/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes \
        --only-binary :all: --requirement requirements.lock && \
    python3 -m venv --without-pip /opt/build && \
    python3 -m pip --python /opt/build/bin/python install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY sidecar ./sidecar
RUN python3 -m pip --python /opt/build/bin/python wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . && \
    python3 -m pip --python /opt/rankguard/bin/python install --no-cache-dir --no-compile --no-deps --no-index /wheels/*.whl && \
    rm -r /opt/rankguard/lib/python*/site-packages/kubernetes/aio && \
    # Byte code is made here, once: the root file system is read-only where this runs, and a guard that is started
    # again has no time for a compiler. It is checked against nothing, since nothing changes. The Kubernetes client's
    # thousand modules of models are left out: 28 MB, and none of them is imported.
    /opt/rankguard/bin/python -m compileall -q -x 'kubernetes/client/(api|models)/' --invalidation-mode unchecked-hash /opt/rankguard/lib

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rankguard" \
      org.opencontainers.image.description="Sees an LLM inference rank die, saves the evidence, kills the engine, says who failed first and why" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/rankguard /opt/rankguard
# In a pod the container stays up whatever is set wrong: its restart could take a whole group down.
# Nothing is written but to the dump folder, so the root file system can be read-only.
ENV PATH=/opt/rankguard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RANKGUARD_IN_POD=1 \
    RANKGUARD_DUMP_DIR=/var/lib/rankguard
EXPOSE 21400
ENTRYPOINT ["rankguard"]
CMD ["run"]
