"""PyTorch and transformers, or one error that says how to get them."""

try:
    import torch
    import transformers
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers"):  # what is missing belongs to them: their message says more
        raise
    raise ImportError(f'subquad.transformers needs {error.name}: pip install "subquad[transformers]"') from None

__all__ = ["torch", "transformers"]
