"""Decoding: a sequence that grows, and attention over what of it a pattern can still reach."""

from subquad.decode.cache import KVCache

__all__ = ["KVCache"]
