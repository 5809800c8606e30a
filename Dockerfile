# docker build --target cpu -t knowlm:cpu . && docker run -it knowlm:cpu     a machine without a GPU
# docker build --target gpu -t knowlm:gpu .                                  NVIDIA GPUs
# docker run -it --gpus all --shm-size 8g -v "$PWD/checkpoints:/knowlm/checkpoints" -p 127.0.0.1:8090:8090 knowlm:gpu
# tools/setup.sh installs the packages, as on any machine; CUDA itself comes with torch's wheels.
FROM python:3.11-slim-bookworm AS machine
# DeepSpeed and Triton compile small kernels when they first run. The examples use curl.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential curl git && rm -rf /var/lib/apt/lists/*
WORKDIR /knowlm
ENV PATH=/knowlm/.venv/bin:$PATH PIP_NO_CACHE_DIR=1
COPY requirements.txt requirements-cpu.txt ./
COPY tools/setup.sh tools/

FROM machine AS cpu
RUN bash tools/setup.sh --cpu
COPY . .
CMD ["bash"]

FROM machine AS gpu
RUN bash tools/setup.sh --gpu
COPY . .
CMD ["bash"]
