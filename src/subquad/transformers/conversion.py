"""Models that do not take their attention by name: their self-attention is replaced, and put back."""

from __future__ import annotations

from typing import Any, TypeVar

from subquad.transformers.needs import torch

Model = TypeVar("Model", bound=torch.nn.Module)


def convert(model: Model) -> Model:
    """Let the self-attention of a Longformer or BigBird run on subquad, in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model of Hugging Face with `LongformerSelfAttention` or `BigBirdBlockSparseAttention` in it, or one such
        layer. Weights, hooks, names and the state dict stay as they are, and so do the optimizers that know them.

    Returns
    -------
    model
        The same object. `restore` undoes it; what is converted already stays so.

    Raises
    ------
    TypeError, ValueError
        If this is no model, or has no such layer: the message says what to do instead.

    Notes
    -----
    Longformer computes the same as before, up to rounding: windows and global tokens with their own projections,
    padding anywhere, any global tokens in each element of a batch, dropout. The n x n mask that the model builds
    before its first layer becomes a row of n. BigBird attends each block once, which is what its paper defines; the
    model itself counts block 0 several times (see `from_config` for the pattern of inference; in training each layer
    adds the random blocks that the model draws). Time O(n (w + g)) for a window w and g global tokens.

    Weights are never stored: ``output_attentions=True`` is refused. A sequence too short for BigBird's blocks makes the
    model itself switch to full attention for good, as it does without subquad.

    Examples
    --------
    >>> from transformers import LongformerConfig, LongformerModel
    >>> config = LongformerConfig(
    ...     hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1, attention_window=8
    ... )
    >>> model = convert(LongformerModel(config)).eval()
    >>> ids = torch.arange(3, 43).reshape(1, 40)
    >>> model(ids).last_hidden_state.shape
    torch.Size([1, 40, 16])
    >>> type(restore(model).encoder.layer[0].attention.self).__name__
    'LongformerSelfAttention'
    """
    from subquad.transformers.big_bird import SparseBigBirdAttention
    from subquad.transformers.longformer import IMPLEMENTATION, SparseLongformerSelfAttention

    _check_model(model)
    ours = {cls.__base__: cls for cls in (SparseBigBirdAttention, SparseLongformerSelfAttention)}
    modules: list[Any] = list(model.modules())
    layers = [module for module in modules if type(module) in ours or type(module) in ours.values()]
    if not layers:
        raise ValueError(_nothing(model))
    for layer in layers:
        layer.__class__ = ours.get(type(layer), type(layer))
    for module in modules:
        if type(module).__name__ == "LongformerModel" and module.config._attn_implementation != IMPLEMENTATION:
            module._before_subquad = module.config._attn_implementation
            module.config._attn_implementation = IMPLEMENTATION
        elif type(module).__name__ == "BigBirdAttention":
            module.self.config = module.config  # where output_attentions may be asked for
    return model


def restore(model: Model) -> Model:
    """Put back what `convert` has replaced, in place.

    Parameters
    ----------
    model : torch.nn.Module
        A converted model, or a copy of one.

    Returns
    -------
    model
        The same object; a model that is not converted stays as it is.

    Raises
    ------
    TypeError
        If this is no model.
    """
    from subquad.transformers.big_bird import SparseBigBirdAttention
    from subquad.transformers.longformer import SparseLongformerSelfAttention

    _check_model(model)
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) in (SparseBigBirdAttention, SparseLongformerSelfAttention):
            module.__class__ = type(module).__base__
        if type(module).__name__ == "LongformerModel" and hasattr(module, "_before_subquad"):
            module.config._attn_implementation = module._before_subquad
            del module._before_subquad
    return model


def _check_model(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")


def _nothing(model: torch.nn.Module) -> str:
    name = type(model).__name__
    if any(type(module).__name__ == "BigBirdSelfAttention" for module in model.modules()):
        return (
            f"model must have block-sparse attention; this {name} attends fully (attention_type='original_full'); "
            f"call model.set_attention_type('block_sparse') first"
        )
    return (
        f"model must have the self-attention of Longformer or BigBird; {name} has neither. Models that take their "
        f"attention by name need no conversion: subquad.transformers.register(), then attn_implementation='subquad'"
    )
