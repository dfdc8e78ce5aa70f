"""Probes and diagnostics of frozen encoders, as functions of features and targets."""

from depthjepa.evaluation.attentive_probe import attentive
from depthjepa.evaluation.classification import chance, knn, knn_accuracies, linear
from depthjepa.evaluation.depth_probe import DepthScore, DepthTable, depth_table, depth_tables
from depthjepa.evaluation.diagnostics import Diagnosis, diagnose, effective_rank, rank_me, token_shares, verdict
from depthjepa.evaluation.features import Encode, Pooled, pooled_features
from depthjepa.evaluation.gathering import Features, features_of
from depthjepa.evaluation.normal_probe import NormalTable, normal_tables
from depthjepa.evaluation.probes.running import classification_tables
from depthjepa.evaluation.readout import DepthReadout

__all__ = [
    "DepthReadout",
    "DepthScore",
    "DepthTable",
    "Diagnosis",
    "Encode",
    "Features",
    "NormalTable",
    "Pooled",
    "attentive",
    "chance",
    "classification_tables",
    "depth_table",
    "depth_tables",
    "diagnose",
    "effective_rank",
    "features_of",
    "knn",
    "knn_accuracies",
    "linear",
    "normal_tables",
    "pooled_features",
    "rank_me",
    "token_shares",
    "verdict",
]
