# docs/docker.md has the commands. DEVICE=cpu builds without CUDA; both run as the user of the host.
FROM python:3.12-slim

ARG DEVICE=cuda
ARG UID=1000
ARG GID=1000

# rsync and ssh: for searches on other machines. libgomp: what torch and scikit-learn count threads with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgomp1 make openssh-client rsync \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /ballot
COPY requirements.txt requirements-extra.txt ./
# PyTorch's own index has the wheels without CUDA; PyPI's carry it along.
RUN if [ "$DEVICE" = cpu ]; then \
        grep -E "^torch(vision)?[>=]" requirements.txt > /tmp/torch.txt \
        && pip install --no-cache-dir -r /tmp/torch.txt --index-url https://download.pytorch.org/whl/cpu; \
    fi \
    && pip install --no-cache-dir -r requirements.txt -r requirements-extra.txt

COPY . .
# The ids of the host, so that what is written into mounted folders belongs to whoever started this.
RUN groupadd --gid "$GID" --non-unique ballot \
    && useradd --uid "$UID" --gid "$GID" --non-unique --create-home ballot \
    && mkdir -p /data /ballot/outputs /ballot/ensemble \
    && chown -R "$UID:$GID" /ballot /data
USER ballot
VOLUME ["/data", "/ballot/outputs"]
ENTRYPOINT ["python"]
CMD ["train.py", "--help"]
