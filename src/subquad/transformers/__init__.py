"""Hugging Face models on subquad: one line before or after they are built, and nothing else of them changes.

`register` makes ``attn_implementation="subquad"`` known to every model that takes its attention by name; `convert`
replaces the self-attention of Longformer and BigBird, which do not; `from_config` tells the pattern of a layer, and
needs neither PyTorch nor transformers.
"""

from typing import TYPE_CHECKING

from subquad import lazy

if TYPE_CHECKING:
    from subquad.transformers.configs import from_config
    from subquad.transformers.conversion import convert, restore
    from subquad.transformers.interface import register

__all__ = ["convert", "from_config", "register", "restore"]

_WHERE = {"convert": "conversion", "from_config": "configs", "register": "interface", "restore": "conversion"}

__getattr__, __dir__ = lazy.names(__name__, _WHERE)
