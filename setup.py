"""Packaging. The folder `kernels` is installed and imported as `tinyvit.kernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
source = (HERE / "tinyvit/__init__.py").read_text("utf-8")
version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
assert version, 'tinyvit/__init__.py has no line __version__ = "..."'

setup(
    name="tinyvit",
    version=version[1],
    description="Train and study small Vision Transformers with nothing but NumPy, and see every gradient",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The tinyvit authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.15",
    package_dir={"tinyvit": "tinyvit", "tinyvit.kernels": "kernels"},
    packages=[
        *find_packages(include=["tinyvit", "tinyvit.*"]),
        "tinyvit.kernels",
        *(f"tinyvit.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_data={
        "": ["*.cu", "*.cuh"],
        "tinyvit": [
            "py.typed",
            "recipes/*.toml",
            "data/*.csv.gz",
            "data/*.txt",
            "weights/*.safetensors",
            "backend/assets/*",
            "study/page/assets/*",
            "study/handout/*.txt",
            "program/assets/*",
        ],
    },
    zip_safe=False,
    entry_points={"console_scripts": ["tinyvit = tinyvit.cli:main"]},
    install_requires=[
        "numpy>=2.0",
        # Without it every operation runs its plain rule. Pyodide, which runs Python in browsers, has no Numba.
        'numba>=0.63; platform_python_implementation == "CPython" and sys_platform != "emscripten"',
        "ml_dtypes>=0.5,!=0.7.0",  # importing 0.7.0 takes 0.7 s, others 5 ms: each command would wait for it
        "safetensors>=0.5",
        "rich>=13",
        "Pillow>=10",
        "matplotlib>=3.9",
        "threadpoolctl>=3",
        "click>=8.1",
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x[ctk]>=14", "numba-cuda[cu12]"],
        "cuda13": ["cupy-cuda13x[ctk]>=14", "numba-cuda[cu13]"],
        "mpi": ["mpi4py>=4", "mpich; platform_system == 'Linux' or platform_system == 'Darwin'"],
        "hub": ["huggingface_hub>=0.24"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
        "bench": ["torch", "jax", "autograd"],
        # Pyodide has all base dependencies but Numba from the version on that this kernel brings.
        "lite": ["jupyterlite-core[contents]>=0.8.6", "jupyterlite-pyodide-kernel>=0.8.6", "build"],
        "docs": ["sphinx>=8", "myst-nb>=1.2", "furo>=2024.8"],
        # NVRTC and NVVM compile the CUDA kernels without a GPU, and nvdisasm shows their machine code; numba-cuda has
        # their simulator. onnx and onnxruntime check exported models.
        "dev": [
            *(
                "pytest>=8",
                "pytest-timeout",
                "pytest-xdist",
                "hypothesis",
                "ruff==0.17.*",
                "mypy",
                "playwright",
                "axe-playwright-python",
                "build",
            ),
            *("onnx>=1.16", "onnxruntime>=1.18"),
            *(
                "nvidia-cuda-nvrtc>=13",
                "nvidia-cuda-nvdisasm>=13",
                "nvidia-nvvm>=13",
                "cuda-pathfinder",
                "numba-cuda>=0.23",
            ),
        ],
    },
)
