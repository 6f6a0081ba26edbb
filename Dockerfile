# The sidecar's image. Any Debian-like Python 3.11+ image does as the base.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sidecar ./sidecar
RUN python3 -m pip wheel --no-cache-dir --wheel-dir /wheels .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="rankguard" \
      org.opencontainers.image.description="Sees an LLM inference rank die, saves the evidence, kills the engine, says who failed first and why" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --no-compile --no-index --find-links=/wheels rankguard
# In a pod the container stays up whatever is set wrong: its restart could take a whole group down.
ENV RANKGUARD_IN_POD=1 \
    RANKGUARD_DUMP_DIR=/var/lib/rankguard
EXPOSE 21400
ENTRYPOINT ["rankguard"]
CMD ["run"]
