"""The streaming engine: read, normalise, forward pass, blend, write; constant memory."""

from geostudio_dagster.prediction.engine import predict
from geostudio_dagster.prediction.options import PredictOptions
from geostudio_dagster.prediction.report import PredictionReport

__all__ = ["PredictOptions", "PredictionReport", "predict"]
