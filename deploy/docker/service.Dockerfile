# One image per service, from one file: docker build --build-arg SERVICE=sentiment -f deploy/docker/service.Dockerfile .
# It holds what serves (the `serve` extra), the artefacts of that task, and no torch. ARTEFACTS=. puts those of all tasks in.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheels
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src
# First what changes seldom: the dependencies, read out of pyproject.toml, are built again only when it changes.
COPY pyproject.toml ./
RUN python - <<'SCRIPT' > requirements.txt
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["serve"], sep="\n")
SCRIPT
RUN --mount=type=cache,target=/var/cache/pip \
    pip wheel --disable-pip-version-check --wheel-dir /wheels/dependencies --requirement requirements.txt
COPY README.md LICENSE ./
COPY services services
COPY models models
# The artefacts are data, not code: each image gets those that it serves, below.
RUN --mount=type=cache,target=/var/cache/pip \
    rm -rf models/artefacts \
 && pip wheel --disable-pip-version-check --no-deps --wheel-dir /wheels/project .

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin statestream
RUN --mount=type=bind,from=wheels,source=/wheels/dependencies,target=/wheels \
    pip install --no-cache-dir --disable-pip-version-check --no-index --no-deps /wheels/*.whl
COPY --chmod=0555 deploy/docker/entrypoint.sh /usr/local/bin/statestream-entrypoint
RUN --mount=type=bind,from=wheels,source=/wheels/project,target=/wheels \
    pip install --no-cache-dir --disable-pip-version-check --no-index --no-deps /wheels/*.whl

ARG SERVICE
RUN python -c 'import sys; sys.exit(not sys.argv[1] and "--build-arg SERVICE=<task> is missing")' "${SERVICE}"
ARG ARTEFACTS=${SERVICE}
COPY models/artefacts/${ARTEFACTS} /usr/local/share/statestream/artefacts/${ARTEFACTS}
ENV SERVICE=${SERVICE} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    STATESTREAM_ARTEFACTS=/usr/local/share/statestream/artefacts \
    STATESTREAM_LISTEN=0.0.0.0:50051 \
    STATESTREAM_METRICS_LISTEN=0.0.0.0:9464
LABEL org.opencontainers.image.title="statestream-${SERVICE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001
EXPOSE 50051 9464
ENTRYPOINT ["statestream-entrypoint"]
