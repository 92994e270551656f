"""Mistakes in what is to be timed."""

from tests.mistakes.mistake import Mistake

VIT = "tools/bench.py model digits/vit merge.r=1"

MISTAKES: list[Mistake] = [
    Mistake(
        "Merging in a model without tokens",
        "tools/bench.py model lenet5 --methods tome",
        "lenet5: has no tokens to merge; leave --methods and merge. out",
    ),
    Mistake(
        "A merging method without a number of tokens",
        "tools/bench.py model timm:deit_tiny_patch16_224 --methods tome dpc_knn",
        "merge.method = 'tome': removes no token; say how many, as in merge.r=8",
    ),
    Mistake(
        "The speed of a number of tokens that depends on the image",
        "tools/bench.py model timm:deit_tiny_patch16_224 merge.threshold=0.9",
        "merge: the number of tokens depends on the image, and random images are timed here; give r; ...",
    ),
    Mistake(
        "CUDA graphs on a CPU",
        f"{VIT} --runtimes eager graph",
        "--runtimes graph: runs on cuda alone; use --device cuda",
    ),
    Mistake(
        "An implementation of attention that the device does not have",
        f"{VIT} --attention flash",
        "--attention flash: not on cpu; use auto, fused, math",
    ),
    Mistake(
        "A precision that an exported file does not have",
        f"{VIT} --runtimes onnx --precision bf16",
        "--runtimes onnx: not in bf16; add --precision fp32 or int8, or leave it out",
    ),
    Mistake(
        "A precision that only exported files have",
        f"{VIT} --precision int8",
        "--runtimes eager: not in int8; add --precision fp32 or bf16 or fp16, or leave it out",
    ),
    Mistake(
        "Settings of training where only the model is timed",
        f"{VIT} train.lr=0.1",
        "train: has no effect on a model; leave it out, or write model.key=value",
    ),
]
