# Two images, both for docker-compose.yml:
#   strongroom   every role of ours; `strongroom` is its command, `docker build .` makes it
#   engine-cpu   vLLM for machines without a GPU; those with one use vllm/vllm-openai
# TORCH_INDEX=https://download.pytorch.org/whl/cpu leaves out CUDA, which saves some GB where there is no GPU.

FROM python:3.11.14-slim-bookworm AS python
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_PROGRESS_BAR=off
# No home of its own: the file system is read-only, and /tmp is what the libraries may write to.
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin strongroom
ARG TORCH_INDEX=


# From what changes least to what changes most: an edit of our own code repeats the last two steps only.
FROM python AS strongroom-build
RUN python -m venv /opt/strongroom
ENV PATH=/opt/strongroom/bin:$PATH
WORKDIR /opt/strongroom/source
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/dependencies.txt \
    && pip install -c constraints.txt setuptools -r /tmp/dependencies.txt
COPY README.md ./
COPY app app
COPY ingest ingest
COPY retrieval retrieval
COPY serving serving
# Run from the source tree, pages and migrations included, as `make setup` does.
RUN pip install --no-deps --no-build-isolation -e . && python -m compileall -q app ingest retrieval serving


FROM python AS engine-build
RUN python -m venv /opt/engine
ENV PATH=/opt/engine/bin:$PATH
# The version that the engine's own list is made for; see its first lines.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY serving/engine-cpu.txt ./
RUN pip install --no-deps -r engine-cpu.txt


FROM python AS engine-cpu
# vLLM's kernels are linked against it.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=engine-build /opt/engine /opt/engine
ENV PATH=/opt/engine/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]


FROM python AS strongroom
# Reads scans; other languages are packages of the same kind (tesseract-ocr-deu).
RUN apt-get update && apt-get install -y --no-install-recommends tesseract-ocr tesseract-ocr-eng && rm -rf /var/lib/apt/lists/*
# A new volume takes its owner and mode from the folder that it is mounted on.
RUN install -d -o 10001 -g 10001 -m 0700 /data && install -d -m 0755 /models
COPY --from=strongroom-build /opt/strongroom /opt/strongroom
ENV PATH=/opt/strongroom/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["strongroom"]
