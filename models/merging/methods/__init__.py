"""All merging methods by name. A new method is a file in this folder and an entry in MERGERS."""

from __future__ import annotations

from ..contract import Merger
from .atc import ATC
from .ats import ATS
from .baselines import NONE, POOL, RANDOM
from .diffrate import DIFFRATE
from .dpc_knn import DPC_KNN
from .dtem import DTEM
from .dynamicvit import DYNAMICVIT
from .facility_location import FACILITY_LOCATION
from .grid import GRID
from .kmedoids import KMEDOIDS
from .mctf import MCTF
from .patchmerger import PATCHMERGER
from .pitome import PITOME
from .sinkhorn import SINKHORN
from .sit import SIT
from .tofu import TOFU
from .tome import TOME
from .topk import TOPK

MERGERS: dict[str, Merger] = {
    "none": NONE,
    "random": RANDOM,
    "pool": POOL,
    "tome": TOME,
    "tofu": TOFU,
    "facility_location": FACILITY_LOCATION,
    "pitome": PITOME,
    "dpc_knn": DPC_KNN,
    "kmedoids": KMEDOIDS,
    "atc": ATC,
    "topk": TOPK,
    "ats": ATS,
    "diffrate": DIFFRATE,
    "mctf": MCTF,
    "dtem": DTEM,
    "dynamicvit": DYNAMICVIT,
    "patchmerger": PATCHMERGER,
    "sinkhorn": SINKHORN,
    "sit": SIT,
    "grid": GRID,
}
