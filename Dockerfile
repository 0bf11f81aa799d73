# One image for every handler: the arguments select the one that a container runs, as in `args: ["run", "process-email"]`.
#
#   make image                             taskflux:<version>, with docker, podman or buildah
#   docker build -t taskflux .             the same by hand; --build-arg BASE=… sets another base, preferably by digest
#   base=$(image/base.py) && make image BASE="$base"    with the base named by digest, as in CI: a tag can be moved
#   docker build --target dev -t taskflux-dev .
#
# For a private index or a private CA, there are two secrets. They are not stored in a layer:
#   --secret id=pip_conf,src=pip.conf      pip's configuration
#   --secret id=ca,src=ca-certificates.crt the certificates to trust, instead of the base's
#
# Only syntax that every builder supports: a `# syntax=` line would fetch another frontend from a registry.
ARG BASE=docker.io/library/python:3.12-slim


# The locked dependencies of every deployment, in a virtual environment at its final place.
FROM ${BASE} AS dependencies
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0
WORKDIR /build
COPY requirements/base.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip /opt/taskflux \
    && pip --python /opt/taskflux/bin/python install --no-compile --require-hashes --only-binary :all: \
        -r requirements/base.txt
# Bytecode is compiled here, since a read-only container cannot store it. The sources never change, so they are never
# checked. The official base lacks the standard library's bytecode, too (docker-library/python#615).
COPY image/shrink.py image/
RUN python3 image/shrink.py /opt/taskflux/lib \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/taskflux/lib \
    && touch before \
    && stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') \
    && python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(config-[^/]*|dist-packages|idlelib|lib2to3|pydoc_data|site-packages|test|tkinter|turtledemo)/' "$stdlib" \
    && mkdir -p /system/etc /system/app \
    && find "$stdlib" -name '*.pyc' -newer before -exec cp --parents -t /system {} + \
    && cp /etc/passwd /etc/group /system/etc/ \
    && echo 'taskflux:x:65532:65532:TaskFlux:/tmp:/usr/sbin/nologin' >>/system/etc/passwd \
    && echo 'taskflux:x:65532:' >>/system/etc/group


# TaskFlux itself, as a tree that is copied over the dependencies: what changes often is a small layer.
FROM dependencies AS application
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip backend \
    && pip --python backend/bin/python install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY handlers handlers
COPY taskflux taskflux
# The times in a wheel are part of its hash, which the installation records. The same sources must give the same layer.
RUN SOURCE_DATE_EPOCH=315532800 \
    pip --python backend/bin/python wheel --no-deps --no-index --no-build-isolation -w dist . \
    && pip --python /opt/taskflux/bin/python install --no-deps --no-index --no-compile --no-warn-script-location \
        --root /application dist/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /application -p / /application


# Everything but TaskFlux itself.
FROM ${BASE} AS runtime
COPY --from=dependencies /system /
COPY --from=dependencies /opt/taskflux /opt/taskflux
# PIP_PYTHON: in an image built on this one, `pip install` installs into TaskFlux's environment.
ENV PATH=/opt/taskflux/bin:$PATH \
    PIP_PYTHON=/opt/taskflux/bin/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONUNBUFFERED=1
# Your own handlers belong here: they are found in the working directory.
WORKDIR /app
EXPOSE 8080
# A number, because runAsNonRoot cannot check a name.
USER 65532:65532
ENTRYPOINT ["taskflux"]


# For development in a cluster: `run --reload`, and sources in /app/taskflux. The user that runs owns them, since
# Skaffold's file sync replaces them from inside the container, with that user's rights. These sources are imported, and
# have no bytecode, which would hide replaced files. Unlike in production, the root file system must be writable.
FROM runtime AS dev
USER 0:0
COPY --from=application /application /
COPY requirements/reload.txt /tmp/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt pip install --no-cache-dir --disable-pip-version-check \
        --root-user-action ignore --require-hashes --only-binary :all: -r /tmp/reload.txt \
    && rm /tmp/reload.txt \
    && packages=$(/opt/taskflux/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -r "$packages/taskflux" \
    && echo /app >"$packages/taskflux-sources.pth" \
    && chown 65532:65532 /app
COPY --chown=65532:65532 taskflux /app/taskflux
COPY --chown=65532:65532 handlers /app/taskflux/handlers
USER 65532:65532


# The last stage is built if no other is named.
FROM runtime AS production
COPY --from=application /application /
ARG BASE
ARG CREATED
ARG REVISION
ARG SOURCE
ARG VERSION
LABEL org.opencontainers.image.title="TaskFlux" \
      org.opencontainers.image.description="Tasks over HTTP, kept in PostgreSQL, handed through Kafka to small handlers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}"
