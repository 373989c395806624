# The README's main command in a container: docker build -t visrl . && docker run --rm visrl
# Anything else: docker run --rm -v "$PWD:/work" visrl --model tiny --tasks world_rec
FROM python:3.11-slim
ENV OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false PIP_NO_CACHE_DIR=1
# without CUDA: for a GPU leave this line out, and pip finds the default build
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.14.1 torchvision==0.29.1
COPY pyproject.toml README.md LICENSE /src/
COPY visrl /src/visrl
COPY evals /src/evals
COPY tasks /src/tasks
COPY recipes /src/recipes
RUN pip install /src && useradd --create-home visrl && install -d -o visrl /work
USER visrl
WORKDIR /work
ENTRYPOINT ["visrl-eval"]
CMD ["--model", "tiny", "--tasks", "world", "--limit", "50"]
