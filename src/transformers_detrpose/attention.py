"""Self-attention along one axis of the tokens."""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .deployment.folding import join_linears
from .sampling import is_exporting


def softmax(logits: torch.Tensor, is_fused: bool) -> torch.Tensor:
    """Returns the softmax over the last axis, in float32."""
    logits = logits.float()
    if is_fused and logits.device.type == "cpu" and not (torch.compiler.is_compiling() or is_exporting()):
        # PyTorch takes two to four times as long for its own softmax over so few numbers.
        exponentials = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
        return exponentials.div_(exponentials.sum(dim=-1, keepdim=True))
    return logits.softmax(dim=-1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention written out, for when its weights are wanted: transformers' attention functions, of any batch shape."""
    scores = torch.matmul(query, key.transpose(-2, -1))
    if scaling != 1:
        scores = scores * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = softmax(scores, module.qkv_proj is not None).to(query.dtype)
    return torch.matmul(weights, value).transpose(-3, -2), weights


class DETRPoseSelfAttention(nn.Module):
    """Multi-head self-attention over one axis."""

    is_causal = False

    def __init__(self, config, num_heads):
        super().__init__()
        self.config = config
        self.num_heads, self.head_dim = num_heads, config.d_model // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.o_proj = nn.Linear(config.d_model, config.d_model)
        self.qkv_proj = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        axis: int = -2,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends along one axis.

        Args:
            hidden_states: (..., length, D), or (..., length, others, D) with axis -3.
            position: added to queries and keys, not to values; broadcast to the shape of `hidden_states`.
            attention_mask: (1, 1, length, length), added to the scores before the softmax.
            output_attentions: whether to return the weights.
            axis: of `hidden_states`, -2 or -3.

        Returns:
            The attended values, shaped as `hidden_states`, and the weights (..., heads, length, length) or None.
        """
        axis = hidden_states.ndim + axis
        states = self.project(hidden_states, position, axis)
        implementation = self.config._attn_implementation
        # Written out, attention among few tokens takes less time on processors.
        if output_attentions or implementation in (None, "eager") or self.qkv_proj is not None:
            attention = eager_attention_forward
        else:
            attention = ALL_ATTENTION_FUNCTIONS[implementation]
            states = [x.flatten(0, -4) for x in states]
        attended, weights = attention(self, *states, attention_mask, dropout=0.0, scaling=self.scaling, is_causal=False)
        rows = [size for index, size in enumerate(hidden_states.shape[:-1]) if index not in (0, axis)]
        attended = attended.reshape(-1, *rows, hidden_states.shape[axis], self.num_heads, self.head_dim)
        attended = attended.movedim(hidden_states.ndim - 2, axis).reshape(-1, hidden_states.shape[-1])
        attended = self.o_proj(attended).view(-1, *hidden_states.shape[1:])
        return attended, weights if output_attentions else None

    def project(self, hidden_states, position, axis) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values, each (..., heads, length, D / heads)."""
        shape, last_axis = (-1, *hidden_states.shape[1:-1]), hidden_states.ndim - 1
        if self.qkv_proj is not None:
            states = self.qkv_proj(hidden_states.reshape(-1, hidden_states.shape[-1])).view(
                *shape, 3 * self.num_heads, self.head_dim
            )
            return states.movedim(axis, last_axis).split(self.num_heads, dim=-3)
        located = hidden_states if position is None else hidden_states + position
        states = self.q_proj(located), self.k_proj(located), self.v_proj(hidden_states)
        return tuple(x.view(*shape, self.num_heads, self.head_dim).movedim(axis, last_axis) for x in states)

    def fuse(self):
        """Joins the projections of attention without position, and folds the scale into them, in place."""
        self.q_proj.weight.data *= self.scaling
        self.q_proj.bias.data *= self.scaling
        self.qkv_proj, self.scaling = join_linears(self.q_proj, self.k_proj, self.v_proj), 1.0
        self.q_proj = self.k_proj = self.v_proj = None
