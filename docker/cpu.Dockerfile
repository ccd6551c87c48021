# docker build -f docker/cpu.Dockerfile -t eggroll-rl:cpu . && docker run --rm -v "$PWD/runs:/runs" eggroll-rl:cpu
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /eggroll-rl
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '.[grpo,ray,math,reasoning-gym]'
WORKDIR /
ENTRYPOINT ["eggroll-rl"]
CMD ["train", "countdown_tiny", "output_dir=/runs/countdown_tiny"]
