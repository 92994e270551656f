"""How merged tokens should be rotated: attention over merged tokens beside attention over the duplicates.

PYTHONPATH=. python docs/results/rotary/compare.py

Patches of a 14 x 14 grid have equal contents in groups. Attention over all of them, each rotated by its own place, is
the truth; over one token a group, with log size as a bias, it has to choose a rotation for the group.
"""

import torch

from models.merging import Tokens
from models.merging.wrapping.rotary import mean_rotation, rotated

SIDE, HEADS, DIM = 14, 4, 64


PLACES = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).view(-1, 2).float()


def rope(places: torch.Tensor, temperature: float = 10000.0, reference: int = 16) -> torch.Tensor:
    """Axial rotary embeddings as in EVA-02: half of the angles follow the row, half the column.

    Args:
        places: (N, 2) row and column.
        temperature: of the lowest frequency.
        reference: rows and columns of the grid that frequencies are made for.

    Returns:
        Sines and cosines, (N, 2 x DIM).
    """
    bands = 1 / temperature ** (torch.arange(0, DIM // 2, 2) / (DIM // 2))
    angle = (places[:, :, None] * reference / SIDE * bands).flatten(1).repeat_interleave(2, dim=-1)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def groups(rows: int, columns: int) -> torch.Tensor:
    """The group of each patch where blocks of rows x columns patches form one."""
    row, column = torch.arange(SIDE)[:, None] // rows, torch.arange(SIDE)[None] // columns
    return (row * (-(-SIDE // columns)) + column).flatten().unique(return_inverse=True)[1]


def scattered(size: int, generator: torch.Generator) -> torch.Tensor:
    """Groups of so many patches from anywhere."""
    return (torch.randperm(SIDE**2, generator=generator) // size).unique(return_inverse=True)[1]


def error(index: torch.Tensor, how: str, scale: float, generator: torch.Generator) -> float:
    """The relative error of what merged tokens receive, against the mean over the duplicates, in %."""
    count = int(index.max()) + 1
    q, k, v = (torch.randn(1, HEADS, count, DIM, generator=generator) for _ in range(3))
    q = q * scale
    full = rope(PLACES)
    queries, keys = (rotated(x[:, :, index], full, 0, False) for x in (q, k))
    truth = (queries @ keys.mT / DIM**0.5).softmax(-1) @ v[:, :, index]
    sizes = torch.bincount(index, minlength=count).float()
    mean = torch.zeros(1, HEADS, count, DIM).index_add_(2, index, truth) / sizes[:, None]
    tokens = Tokens(index[None], sizes[None])
    rotation = mean_rotation(full, tokens, 0)
    if how == "mean angle":  # of the mean rotation, made as long as a rotation is
        length = rotation.unflatten(-1, (2, -1)).norm(dim=-2, keepdim=True).clamp(min=1e-6)
        rotation = (rotation.unflatten(-1, (2, -1)) / length).flatten(-2)
    elif how == "mean position":
        rotation = rope(torch.zeros(count, 2).index_add_(0, index, PLACES) / sizes[:, None])
    elif how == "first member":
        first = torch.stack([(index == group).nonzero()[0, 0] for group in range(count)])
        rotation = full[first]
    elif how == "none":
        rotation = torch.cat([torch.zeros(count, DIM), torch.ones(count, DIM)], dim=-1)
    queries, keys = (rotated(x, rotation, 0, False) for x in (q, k))
    out = (queries @ keys.mT / DIM**0.5 + sizes.log()).softmax(-1) @ v
    return 100 * float((out - mean).norm() / mean.norm())


def main() -> None:
    ways = ("mean rotation", "mean angle", "mean position", "first member", "none")
    print("| groups | scale of the scores | " + " | ".join(ways) + " |")
    print("|---|---" + "|---" * len(ways) + "|")
    for name in ("1 x 2", "2 x 2", "3 x 3", "2 from anywhere", "4 from anywhere"):
        for scale in (1.0, 3.0):
            cells = []
            for how in ways:
                errors = []
                for seed in range(20):
                    generator = torch.Generator().manual_seed(seed)
                    if "anywhere" in name:
                        index = scattered(int(name[0]), generator)
                    else:
                        index = groups(int(name[0]), int(name[-1]))
                    errors.append(error(index, how, scale, generator))
                spread = torch.tensor(errors)
                cells.append(f"{spread.mean():.1f} ± {spread.std():.1f}")
            print(f"| {name} | {scale:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
