"""Token merging. A method is a function (metric, r, context) -> Assignment in a file of its own, and a line here."""

from .baselines import none, none_at_all, pool, pooled, random
from .contract import Assignment, MergeContext, Merger, half
from .dpc_knn import dpc_knn
from .dtem import dtem, soften
from .facility_location import facility_location
from .grid import grid, narrowed
from .mctf import mctf
from .pitome import pitome
from .schedule import effective_schedule
from .tokens import Tokens, apply_assignment, initial_tokens, log_size, merge, size_bias, unmerge
from .tome import at_most as tome_at_most
from .tome import tome
from .topk import topk

MERGERS: dict[str, Merger] = {
    "none": Merger(none, none_at_all),
    "random": Merger(random),
    "pool": Merger(pool, shrink=pooled),
    "tome": Merger(tome, tome_at_most, options={"kth": 2}).bind(),
    "facility_location": Merger(facility_location, options={"form": "auto"}).bind(),
    "pitome": Merger(pitome, half),
    "dpc_knn": Merger(dpc_knn, options={"neighbours": 5}).bind(),
    "topk": Merger(topk, attention="class", options={"prune": False}).bind(),
    "mctf": Merger(mctf, attention="all"),
    "dtem": Merger(dtem, half, metric="learned", soft=soften),
    "grid": Merger(grid, shrink=narrowed),
}

from .wrapping import unwrap, wrap  # noqa: E402  they build on settings, and those on MERGERS

__all__ = [
    "MERGERS",
    "Assignment",
    "MergeContext",
    "Merger",
    "Tokens",
    "apply_assignment",
    "effective_schedule",
    "half",
    "initial_tokens",
    "log_size",
    "merge",
    "size_bias",
    "unmerge",
    "unwrap",
    "wrap",
]
