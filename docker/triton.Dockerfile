# NVIDIA Triton Inference Server with s3diff-export in the Python of its backend; see docs/triton.md.
#
#   docker build -f docker/triton.Dockerfile -t s3diff-triton .
#
# Python 3.11 or later is needed: tags from 24.11 on have it.
ARG BASE=nvcr.io/nvidia/tritonserver:25.10-py3

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY export export
COPY runtime runtime
COPY training training
COPY benchmarks benchmarks
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# What runs bundles: gpu, cpu or tensorrt; for tensorrt pin the version that built the engines in constraints.txt.
ARG EXTRA=gpu
COPY constraints.txt /wheels/
COPY --from=build /wheels /wheels
RUN wheel="$(echo /wheels/*.whl)" \
    && python3 -m pip install --no-cache-dir --break-system-packages -c /wheels/constraints.txt "${wheel}[${EXTRA}]" \
    && rm -r /wheels
USER 10001:10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models"]
