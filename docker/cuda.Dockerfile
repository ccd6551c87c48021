# docker build -f docker/cuda.Dockerfile -t eggroll-rl:cuda . && docker run --rm --gpus all -v "$PWD/runs:/runs" eggroll-rl:cuda
FROM vllm/vllm-openai:v0.32.0
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /eggroll-rl
COPY . .
RUN pip install --no-cache-dir '.[grpo,ray,math,reasoning-gym,vllm]'
WORKDIR /
ENTRYPOINT ["eggroll-rl"]
CMD ["train", "countdown_tiny", "output_dir=/runs/countdown_tiny"]
