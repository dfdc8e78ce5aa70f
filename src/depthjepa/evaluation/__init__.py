"""Probes and diagnostics of frozen encoders, as functions of features and targets."""

from depthjepa.evaluation.classification import chance, knn, linear
from depthjepa.evaluation.depth_probe import depth_table, evaluate_depth
from depthjepa.evaluation.diagnostics import diagnose, effective_rank, rank_me, token_shares, verdict
from depthjepa.evaluation.features import Encode, Pooled, pooled_features
from depthjepa.evaluation.readout import DepthReadout, fit_readout, fit_readouts

__all__ = [
    "DepthReadout",
    "Encode",
    "Pooled",
    "chance",
    "depth_table",
    "diagnose",
    "effective_rank",
    "evaluate_depth",
    "fit_readout",
    "fit_readouts",
    "knn",
    "linear",
    "pooled_features",
    "rank_me",
    "token_shares",
    "verdict",
]
