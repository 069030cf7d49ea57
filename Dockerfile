# JupyterLab with the package and its tutorials, on a CPU:
#   docker build -t dreamfusion_nb .
#   docker run --rm -p 127.0.0.1:8888:8888 dreamfusion_nb      # then open the address that it prints
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" -w /work dreamfusion_nb dreamfusion "a hamburger"
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 reader
WORKDIR /home/reader
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# what changes seldom comes first; torch from its own index, without CUDA
COPY constraints.txt /tmp/
RUN pip install -c /tmp/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 jupyterlab
COPY . /tmp/source
RUN pip install -c /tmp/constraints.txt /tmp/source \
    && mkdir dreamfusion_nb \
    && cp -r /tmp/source/nbs /tmp/source/benchmarks /tmp/source/microdreamfusion.py dreamfusion_nb \
    && chown -R reader:reader . && rm -r /tmp/source

USER reader
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--ServerApp.root_dir=/home/reader", \
     "--LabApp.default_url=/lab/tree/dreamfusion_nb/nbs/tutorials/01_first_object.ipynb"]
