"""HybridMerge: hybrid CNN-ViT models with token merging, and a workbench that says what they cost."""

from setuptools import find_packages, setup

LORA = ["peft>=0.18"]
ONNX = ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.20"]

setup(
    name="hybridmerge",
    version="0.1.0",
    description=__doc__,
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["models", "models.*", "engine", "engine.*"]),
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.9",
        "einops>=0.7",
        "fvcore>=0.1.5.post20221221",
        "tensorboard>=2.14",
        "numpy>=1.26",
        "pydantic>=2.7",
        "PyYAML>=6.0",
        "scikit-learn>=1.3",  # the handwritten digits of `make demo`, and their split
        "scipy>=1.10",  # quantiles of intervals
        "torchmetrics>=1.3",
        "matplotlib>=3.7",
        "Pillow>=10.1",
        "tqdm>=4.65",
        "safetensors>=0.4",  # weights in that format
    ],
    extras_require={
        "dev": ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6", "jsonschema>=4.20", *LORA, *ONNX],
        "lora": LORA,  # finetune.mode=lora
        "export": ["torch>=2.13", *ONNX],  # tools/export.py
        "bench": ["submodlib-py>=0.0.3"],  # tools/bench.py --selection measures it beside ours
    },
)
