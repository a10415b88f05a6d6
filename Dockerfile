# The operator's image: controller and runner in one binary, with what the runner calls (pg_dump, pg_restore, psql, git, ssh).
ARG BUILD_IMAGE=rust:1.95-trixie
ARG RUNTIME_IMAGE=debian:trixie-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
# A binary in dist/ is taken as it is: CI and the tests have built it, and the image holds what they tested.
RUN if [ ! -f dist/credit-migration-operator ]; then \
      cargo build --release --locked --bin credit-migration-operator \
      && mkdir -p dist && cp target/release/credit-migration-operator dist/; \
    fi

FROM ${RUNTIME_IMAGE}
# The client programs of the newest supported server dump and restore all older ones. They and their library come from the
# next release of Debian, all else from this one.
RUN if ! pg_dump --version 2>/dev/null | grep -q ' 18\.' || ! command -v git >/dev/null || ! command -v ssh >/dev/null || [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
      sed 's/trixie/forky/g' /etc/apt/sources.list.d/debian.sources >/etc/apt/sources.list.d/forky.sources \
      && printf 'Package: *\nPin: release n=forky*\nPin-Priority: 100\n\nPackage: postgresql-client-18 libpq5\nPin: release n=forky\nPin-Priority: 990\n' >/etc/apt/preferences.d/forky \
      && apt-get update \
      && apt-get install -y --no-install-recommends ca-certificates git openssh-client postgresql-client-18 \
      && rm -rf /var/lib/apt/lists/*; \
    fi
# libpq, git and ssh read the user by number and fail where there is none. The root filesystem may be mounted read-only:
# all that is written goes to /tmp, for which a pod brings a volume.
RUN echo 'nonroot:x:65532:' >> /etc/group && echo 'nonroot:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd
ENV HOME=/tmp
COPY --from=build --chmod=755 /src/dist/credit-migration-operator /usr/local/bin/credit-migration-operator
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/usr/local/bin/credit-migration-operator"]
