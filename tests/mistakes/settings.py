"""Mistakes in settings files and in overrides on the command line."""

from __future__ import annotations

from pathlib import Path

from tests.mistakes.mistake import Mistake


def _duplicate_key(folder: Path) -> None:
    (folder / "mine.yaml").write_text("base: digits/hybrid\nseed: 1\nseed: 2\n")


def _no_settings(folder: Path) -> None:
    (folder / "train.yaml").write_text("image,label\n" + "1.png,cat\n" * 100_000)


MISTAKES: list[Mistake] = [
    Mistake(
        "A misspelt setting",
        "tools/train.py --cfg digits/hybrid train.lrr=0.1 --print",
        "train.lrr: unknown key; did you mean lr?",
    ),
    Mistake(
        "A key twice in a settings file",
        "tools/train.py --cfg mine.yaml --print",
        "mine.yaml:3: seed stands here twice, first on line 2; keep one",
        _duplicate_key,
    ),
    Mistake(
        "A time as the budget of a training run",
        "tools/train.py --cfg digits/hybrid merge.target_ms=5",
        "model.merge.target_ms = 5: means another r on every machine; train with the r that tools/flops.py prints for "
        "it, with the same --cfg and merge.target_ms=5",
    ),
    Mistake(
        "Any number of tokens from a method that learns one",
        "tools/train.py --cfg digits/hybrid merge.method=patchmerger 'merge.r={train: [0, 8]}' --print",
        "model.merge.r.train = [0, 8]: patchmerger learns one number of tokens; give r=n",
    ),
    Mistake(
        "What another merging method counts patches by",
        "tools/train.py --cfg digits/hybrid merge.method=kmedoids merge.importance=keys --print",
        "model.merge.importance = keys: kmedoids has attention and size",
    ),
    Mistake(
        "A threshold for a merging method that has none",
        "tools/train.py --cfg digits/hybrid merge.method=pitome merge.threshold=0.9 --print",
        "model.merge.threshold = 0.9: not with pitome; give r, or use tome, tofu, atc, topk",
    ),
    Mistake(
        "A budget for a number of tokens that depends on the image",
        "tools/train.py --cfg digits/hybrid merge.method=ats merge.adaptive=true merge.target_ratio=1.2 --print",
        "model.merge.target_ratio = 1.2: with merge.adaptive the cost depends on the image; give merge.r or merge.keep",
    ),
    Mistake(
        "Distillation without a teacher",
        "tools/train.py --cfg digits/hybrid train.distill.temperature=2 --print",
        "train.distill: there is no teacher; give train.teacher, or omit it",
    ),
    Mistake(
        "A model from random weights as its own teacher",
        "tools/train.py --cfg digits/hybrid train.teacher=self",
        "train.teacher = 'self': the model has random weights before training; give model.weights, or a run as the "
        "teacher",
    ),
    Mistake(
        "A teacher that is not there",
        "tools/train.py --cfg digits/hybrid train.teacher=runs/unmerged",
        "train.teacher = 'runs/unmerged': no run folder; train it first, or correct the path",
    ),
    Mistake(
        "Weights of classes in another form",
        "tools/train.py --cfg digits/hybrid train.class_weights=inverse --print",
        "train.class_weights = 'inverse': use none, balanced, {name: weight}, or a list of weights in the order of the "
        "classes",
    ),
    Mistake(
        "A weight for a class that there is not",
        "tools/train.py --cfg digits/hybrid 'train.class_weights={10: 2}'",
        "train.class_weights: '10' is not a class of the data; did you mean 1 or 0?",
    ),
    Mistake(
        "Two ways to make rare classes count more",
        "tools/train.py --cfg digits/hybrid train.class_weights=balanced train.sampling=balanced --print",
        "train.class_weights: not beside train.sampling = balanced, which corrects the same; use one",
    ),
    Mistake(
        "The best epoch by a metric that is not measured",
        "tools/train.py --cfg digits/hybrid train.select=auc --print",
        "train.select = 'auc': not a metric of these labels; known: top1, top5, balanced_accuracy",
    ),
    Mistake(
        "A comment behind a number on the command line",
        "tools/train.py --cfg digits/hybrid 'train.lr=1e-3 # lower' --print",
        "train.lr = '1e-3 # lower': should be a valid number",
    ),
    Mistake(
        "Another file in place of a settings file",
        "tools/train.py --cfg train.yaml --print",
        "train.yaml: longer than 250,000 bytes, which no settings are; give a settings file",
        _no_settings,
    ),
    Mistake(
        "A model that is larger than the machine's memory",
        "tools/train.py --cfg digits/vit model.embed_dim=65536 model.depth=100 out=.",
        "model.embed_dim = 65536: with depth 100 and a grid of 4 patches a side the weights take ... of memory, and "
        "there are ...; use smaller ones",
    ),
    Mistake(
        "A learning rate beyond every use",
        "tools/train.py --cfg digits/vit train.lr=1e300",
        "train.lr = 1e+300: must be greater than 0 and at most 1000",
    ),
]
