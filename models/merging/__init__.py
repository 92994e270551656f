"""Token merging. A method is a function (metric, r, context) -> Assignment in a file of its own, and a line here."""

from models.merging.baselines import none, none_at_all, pool, pooled, random
from models.merging.contract import Assignment, MergeContext, Merger, half
from models.merging.dpc_knn import dpc_knn
from models.merging.dtem import dtem, soften
from models.merging.facility_location import facility_location
from models.merging.grid import grid, narrowed
from models.merging.mctf import mctf
from models.merging.pitome import pitome
from models.merging.schedule import effective_schedule
from models.merging.tokens import Tokens, apply_assignment, initial_tokens, log_size, merge, size_bias, unmerge
from models.merging.tome import at_most as tome_at_most
from models.merging.tome import tome
from models.merging.topk import topk

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

from models.merging.wrapping import unwrap, wrap  # noqa: E402  they build on settings, and those on MERGERS

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
