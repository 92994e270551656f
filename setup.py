"""HybridMerge: hybrid CNN-ViT models with token merging, and a workbench that measures what they cost.

The distribution is the library alone: models/ under the name `hybridmerge`, so that it can be installed into projects
that have packages `models` or `engine` of their own. The workbench (engine/ and tools/) runs from a checkout and is
never installed; the extra `workbench` lists what it needs.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
LORA = ["peft>=0.18"]
ONNX = ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.20"]
OPENVINO = ["openvino>=2026.3", "nncf>=3.3"]  # older ones do not read a scatter that adds; 180 MB installed
PAGE = ["altair>=5.5", "vl-convert-python>=1.7", "Jinja2>=3.1"]
SLURM = ["submitit>=1.5"]
TRANSFORMERS = ["transformers>=5.24"]
SEARCH = ["optuna>=4.0"]
SHARDS = ["webdataset>=1.0"]  # writes shards, and brings braceexpand; reading a folder of shards needs neither
# The small MLflow has no database of its own, and without one it needs a server.
MLFLOW = ["mlflow-skinny>=3.17", "SQLAlchemy>=2.0,<3", "alembic>=1.13,<2"]
WANDB = ["wandb>=0.31"]
EXPLORE = ["gradio>=6.31,<7"]
EXPLAIN = ["captum>=0.8", "scikit-image>=0.22"]

setup(
    name="hybridmerge",
    version="0.2.0",
    description="Hybrid CNN-ViT models with token merging, and token merging for the ViTs of timm and torchvision",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"hybridmerge": "models"},
    packages=["hybridmerge", *(f"hybridmerge.{name}" for name in find_packages(str(ROOT / "models")))],
    package_data={"hybridmerge": ["py.typed"]},  # its type hints are meant for users
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.9",
        "einops>=0.7",
        "pydantic>=2.7",
        "safetensors>=0.4",
    ],
    extras_require={
        "lora": LORA,  # finetune.mode=lora
        "export": ["torch>=2.13", *ONNX],  # hybridmerge.export, tools/export.py
        "openvino": ["torch>=2.13", *ONNX, *OPENVINO],  # the same for OpenVINO; int8
        "transformers": TRANSFORMERS,  # wrap on models of Hugging Face's transformers
        "explore": EXPLORE,  # tools/explore.py; gradio needs Pillow below 13
        "explain": EXPLAIN,  # hybridmerge.explain: lime, integrated_gradients, occlusion
        "workbench": [  # engine/ and tools/
            "fvcore>=0.1.5.post20221221",
            "tensorboard>=2.14",
            "numpy>=1.26",
            "PyYAML>=6.0",
            "scikit-learn>=1.3",  # the handwritten digits of `make demo`, and their split
            "scipy>=1.10",  # quantiles of intervals
            "torchmetrics>=1.3",
            "matplotlib>=3.7",
            "Pillow>=10.1",
            "tqdm>=4.65",
            "rich>=13",  # tables on a terminal
        ],
        "page": PAGE,  # tools/compare.py --html
        "slurm": SLURM,  # tools/train.py --slurm, tools/study.py --slurm
        "shards": SHARDS,  # tools/data.py pack, and patterns in data.path
        "mlflow": MLFLOW,  # log.trackers=[mlflow]
        "wandb": WANDB,  # log.trackers=[wandb]
        "search": SEARCH,  # a study that searches over settings
        "bench": ["submodlib-py>=0.0.3"],  # tools/bench.py --selection measures it beside ours
        "dev": [
            "pytest>=8.0",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=2.0",
            "jsonschema>=4.20",
            "setuptools>=70.1",  # a test builds the wheel, without a network
            "selenium>=4.20",  # pages in a headless Chromium, where the distribution has one
            "statsmodels>=0.14",  # McNemar's test of a second library
            *LORA,
            *ONNX,
            *OPENVINO,
            *PAGE,
            *SLURM,
            *TRANSFORMERS,
            "accelerate>=1.1",  # the Trainer of transformers
            *SEARCH,
            *SHARDS,
            *MLFLOW,
            *EXPLAIN,
            *EXPLORE,
        ],
    },
)
