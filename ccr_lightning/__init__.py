"""ccr-lightning: cross-lingual cross-modal retrieval with 1-to-K contrastive learning.

Names are imported on first use: ``import ccr_lightning`` loads no torch, and the losses and metrics load none of the
package's models, data or training code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ccr_lightning._version import __version__

if TYPE_CHECKING:
    from ccr_lightning.data.datamodule import CaptionDataModule
    from ccr_lightning.functional.consistency import mean_rank_variance
    from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss
    from ccr_lightning.functional.ranks import retrieval_ranks
    from ccr_lightning.functional.retrieval import recall_at_k
    from ccr_lightning.metrics import MeanRankVariance, RecallAtK
    from ccr_lightning.models.loading import from_pretrained
    from ccr_lightning.models.published import load_published
    from ccr_lightning.models.retriever import Retriever
    from ccr_lightning.search.embed import embed_pictures
    from ccr_lightning.search.index import Index
    from ccr_lightning.training.module import RetrievalModule

_HOME = {
    "one_to_k_contrastive_loss": "ccr_lightning.functional.contrastive",
    "retrieval_ranks": "ccr_lightning.functional.ranks",
    "recall_at_k": "ccr_lightning.functional.retrieval",
    "mean_rank_variance": "ccr_lightning.functional.consistency",
    "RecallAtK": "ccr_lightning.metrics",
    "MeanRankVariance": "ccr_lightning.metrics",
    "from_pretrained": "ccr_lightning.models.loading",
    "load_published": "ccr_lightning.models.published",
    "Retriever": "ccr_lightning.models.retriever",
    "embed_pictures": "ccr_lightning.search.embed",
    "Index": "ccr_lightning.search.index",
    "CaptionDataModule": "ccr_lightning.data.datamodule",
    "RetrievalModule": "ccr_lightning.training.module",
}

__all__ = [
    "CaptionDataModule",
    "Index",
    "MeanRankVariance",
    "RecallAtK",
    "RetrievalModule",
    "Retriever",
    "__version__",
    "embed_pictures",
    "from_pretrained",
    "load_published",
    "mean_rank_variance",
    "one_to_k_contrastive_loss",
    "recall_at_k",
    "retrieval_ranks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ccr_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
