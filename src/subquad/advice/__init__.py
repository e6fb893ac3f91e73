"""Whether a pattern pays on this machine, predicted from a few measurements of it."""

from subquad.advice.prediction import Advice, advise

__all__ = ["Advice", "advise"]
