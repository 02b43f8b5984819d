# The HTTP service of s3diff-export and its page; see docs/serving.md.
#
#   docker build -f docker/serve.Dockerfile -t s3diff-serve .
#   docker build -f docker/serve.Dockerfile -t s3diff-serve:gpu --build-arg EXTRA=serve,gpu .
#   docker run --rm -p 8000:8000 -v "$PWD/demo-output/demo.bundle:/bundle:ro" s3diff-serve
#
# BASE is any image with Python 3.11 or later and pip. [gpu] and [tensorrt] bring their CUDA libraries along.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY export export
COPY runtime runtime
COPY training training
COPY benchmarks benchmarks
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# What serves, and what runs bundles: serve with cpu, gpu or tensorrt.
ARG EXTRA=serve,cpu
COPY constraints.txt /wheels/
COPY --from=build /wheels /wheels
RUN wheel="$(echo /wheels/*.whl)" \
    && python3 -m pip install --no-cache-dir --break-system-packages -c /wheels/constraints.txt "${wheel}[${EXTRA}]" \
    && rm -r /wheels
USER 10001:10001
EXPOSE 8000
# The time of the first start is that of opening the bundle.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["s3diff-export"]
CMD ["serve", "/bundle", "--host", "0.0.0.0"]
