"""A model on the Hub: card, checks and upload. `vwlmm publish MODEL REPO`, or `publish` from Python."""

from vwlmm.hub.publish import PublishConfig, publish

__all__ = ["PublishConfig", "publish"]
