# Proglog in a container: nothing but Python, the locked dependencies and the package.
#
#   docker build --build-arg REVISION=$(git rev-parse HEAD) -t proglog .
#   docker run --read-only -v log:/var/lib/proglog -p 127.0.0.1:8400:8400 \
#       proglog serve --bind-addr '[::]:8401' --advertise-addr localhost --allow-plaintext
#
# Any image of Debian's glibc with Python 3.11 or later at /usr/local/bin/python3 will do. Releases name
# the official one by its digest.
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
COPY requirements-runtime.lock requirements-build.lock /src/
# Built where it will live: a virtual environment cannot be moved. Only wheels, only with these hashes.
RUN /usr/local/bin/python3 -m venv /opt/proglog \
    && /opt/proglog/bin/pip install --no-cache-dir --disable-pip-version-check \
        --only-binary=:all: --require-hashes --requirement /src/requirements-runtime.lock \
    && /usr/local/bin/python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check \
        --only-binary=:all: --require-hashes --requirement /src/requirements-build.lock
COPY pyproject.toml README.md LICENSE /src/
COPY proglog /src/proglog
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps \
        --no-build-isolation --wheel-dir /tmp/wheel /src \
    && /opt/proglog/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --no-index /tmp/wheel/*.whl \
    && /opt/proglog/bin/pip uninstall --yes --disable-pip-version-check pip \
    && find /opt/proglog -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} + \
    && /opt/proglog/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/proglog/lib

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="proglog" \
    org.opencontainers.image.description="A distributed commit log" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
# The id is for ever: a volume belongs to it. No VOLUME: a mount that was forgotten would hide as an
# anonymous one. What may take another's rights is not needed.
RUN echo 'proglog:x:65532:' >> /etc/group \
    && echo 'proglog:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && install -d -m 0700 -o 65532 -g 65532 /var/lib/proglog \
    && find / -xdev -perm /6000 -type f -exec chmod ug-s {} +
COPY --from=build /opt/proglog /opt/proglog
ENV PATH=/opt/proglog/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    LANG=C.UTF-8 \
    HOME=/tmp \
    MALLOC_ARENA_MAX=2 \
    PROGLOG_DATA_DIR=/var/lib/proglog \
    PROGLOG_LOG_FORMAT=json
USER 65532:65532
WORKDIR /
STOPSIGNAL SIGTERM
# The first process of the container, with handlers of its own and no children: it needs no init.
ENTRYPOINT ["proglog"]
CMD ["serve"]
