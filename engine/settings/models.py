"""Reads the settings of a model without a run: of a settings file, or of a model that is named itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from engine.settings.layers import layered, load_settings, parse_override, parse_overrides
from models.interface import SettingsWithMerging, merging_method, without_merging
from models.registry import MODELS
from models.settings import ModelSettings, UserError, check
from models.settings.zoo import split_name


def load_models(name: str, overrides: Iterable[str], methods: Sequence[str] | None) -> dict[str | None, ModelSettings]:
    """Loads the settings of a model alone, for each of several merging methods.

    Args:
        name: `timm:NAME`, `torchvision:NAME`, the name of one of our models such as lenet5, or what `load_settings`
            takes.
        overrides: strings such as "model.img_size=384" or "merge.r=8".
        methods: merging methods; none: the model as it is.

    Returns:
        Method -> settings. The method is None where neither `methods` nor the overrides ask for merging.

    Raises:
        UserError: as of `load_settings`, an override that is not of the model, or a model without tokens.
    """
    overrides = list(overrides)
    values = parse_overrides(overrides)
    if strange := next((key for key in values if key != "model"), None):
        raise UserError(f"{strange}: has no effect on a model; leave it out, or write model.key=value")
    settings = _load_model(name, [item for item in overrides if parse_override(item)[0][1:2] != ["merge"]])
    if not methods and "merge" not in values.get("model", {}):
        return {None: settings}
    if not isinstance(settings, SettingsWithMerging):
        raise UserError(f"{name}: has no tokens to merge; leave --methods and merge. out")
    several = [_load_model(name, [*overrides, f"merge.method={method}"]) for method in methods or ()]
    return {merging_method(one): one for one in several or [_load_model(name, overrides)]}


def load_beside(texts: Iterable[str], name: str, overrides: Iterable[str]) -> dict[str, ModelSettings]:
    """Loads the settings of models that stand beside another one, without merging unless the text asks for it.

    Args:
        texts: each a name, as `load_models` takes it, overrides, or both, such as "timm:deit_tiny_patch16_224
            model.img_size=192". Without a name it is that other model.
        name: the other model.
        overrides: its overrides.

    Returns:
        Text -> settings.

    Raises:
        UserError: as of `load_models`, or a text that is given twice, is empty, or has an open quote.
    """
    found: dict[str, ModelSettings] = {}
    own = [item for item in overrides if parse_override(item)[0][:2] != ["model", "merge"]]
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(f"--beside {text!r}: {str(error).lower()}; close it") from None
        key = " ".join(words)
        if not words or key in found:
            raise UserError(f"--beside {text!r}: {'given twice' if words else 'empty'}; leave it out")
        named = "=" not in words[0]
        changes = words[1:] if named else [*own, *words]
        merges = any(parse_override(item)[0][:2] == ["model", "merge"] for item in changes)
        (settings,) = load_models(words[0] if named else name, changes, None).values()
        found[key] = settings if merges else without_merging(settings)
    return found


def _load_model(name: str, overrides: Sequence[str]) -> ModelSettings:
    named = split_name({"name": name})
    if named["name"] not in MODELS:
        return load_settings(name, overrides).model
    section = layered(layered({}, {"model": named}), parse_overrides(overrides))["model"]
    return check(MODELS[named["name"]][0], section, "model")
