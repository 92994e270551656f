"""What came of loading weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor

Shape = tuple[int, ...]


@dataclass
class Report:
    """The outcome of loading weights. Names are the model's, except that unexpected ones are the file's.

    Attributes:
        source: the requested weights.
        loaded: names whose values were loaded.
        missing: names, except those of heads, that keep their initial values.
        unexpected: names in the file that the model does not have, converted as far as possible. They do not change
            what is computed: heads, parts of pretraining, and what lies outside of the part that was loaded.
        resized: name, shape in the file, shape in the model.
        how: what was done to each of the resized, such as "resized", by name.
        mismatched: likewise, for names that could not be loaded because of their shape; they are also listed as missing
            or replaced.
        replaced: names of heads that keep their initial values.
        zeroed: names of biases that the file's layers do not have, and that are zero now; they are also loaded.
        folded: number of layer scales that were multiplied into the layers before them.
        others: prefixes of further models of the same shape in the file, and the prefix that was chosen, last.
        caveats: what the file does not say, although the function depends on it.
        share: the fraction of the parameters before the head, counted by elements, that was loaded.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    how: dict[str, str] = field(default_factory=dict)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    folded: int = 0
    others: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    share: float = 0.0

    def lines(self) -> list[str]:
        """Returns the report as lines for the log."""
        share = f"{floor(1000 * self.share) / 10:.1f}% of the parameters before the head"  # 100.0 % is all of them
        lines = [f"weights: {self.source}: {len(self.loaded)} tensors loaded, {share}"]
        if self.others:
            *others, chosen = self.others
            lines.append(f"weights: the file holds the same model under {few([*others, chosen])}; {chosen} is loaded")
        if self.folded:
            lines.append(
                f"weights: {self.folded} layer scales multiplied into attn.proj and mlp.fc2, the same function"
            )
        if self.zeroed:
            lines.append(
                f"weights: {len(self.zeroed)} biases are zero, the file's layers have none: {few(self.zeroed)}"
            )
        for name, old, new in self.resized:
            lines.append(f"weights: {name} {self.how[name]} from {old} to {new}")
        if self.replaced:
            lines.append(f"weights: head left as initialised: {few(self.with_shapes(self.replaced))}")
        if self.missing:
            lines.append(f"weights: {len(self.missing)} missing: {few(self.with_shapes(self.missing))}")
        if self.unexpected:
            lines.append(f"weights: {len(self.unexpected)} unexpected: {few(self.unexpected)}")
        return lines + [f"weights: {caveat}" for caveat in self.caveats]

    def with_shapes(self, names: list[str]) -> list[str]:
        """Returns names, with both shapes where these differ."""
        shapes = {name: f"{name} [file {old}, model {new}]" for name, old, new in self.mismatched}
        return [shapes.get(name, name) for name in names]


def few(names: list[str], most: int = 6) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
