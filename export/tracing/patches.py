"""Changes to PyTorch and models while they are traced, each with its reason; undone afterwards."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import detection, experts, replacements, thrift


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute, replaced while a module is traced.

    Attributes:
        target: ``"module:attribute.path"``.
        replacement: Stands in for it; called with the original, returns what to install.
        reason: What the original does that cannot be traced, and until when.
    """

    target: str
    replacement: Callable[[Any], Any]
    reason: str


_MODELS = "transformers.models."
_LONGFORMER = "transformers.models.longformer.modeling_longformer"
_CANINE = "transformers.models.canine.modeling_canine"
_LLAMA4 = "transformers.models.llama4.modeling_llama4"
_LED = "transformers.models.led.modeling_led"
_SWITCH = "transformers.models.switch_transformers.modeling_switch_transformers"
_NLLB = "transformers.models.nllb_moe.modeling_nllb_moe"

# Model type to how its classes begin: all have one text of the code that is replaced.
_FROZEN_NORMS = {
    "conditional_detr": "ConditionalDetr",
    "d_fine": "DFine",
    "dab_detr": "DabDetr",
    "deformable_detr": "DeformableDetr",
    "deimv2": "Deimv2",
    "detr": "Detr",
    "grounding_dino": "GroundingDino",
    "mm_grounding_dino": "MMGroundingDino",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetrV2",
    "table_transformer": "TableTransformer",
}
_SINES = (
    ("conditional_detr", "ConditionalDetrSinePositionEmbedding", 0.0),
    ("deformable_detr", "DeformableDetrSinePositionEmbedding", 0.5),
    ("detr", "DetrSinePositionEmbedding", 0.0),
    ("mask2former", "Mask2FormerSinePositionEmbedding", 0.0),
    ("maskformer", "MaskFormerSinePositionEmbedding", 0.0),
    ("oneformer", "OneFormerSinePositionEmbedding", 0.0),
)
_DEFORMABLE = (
    "deformable_detr",
    "grounding_dino",
    "lw_detr",
    "mm_grounding_dino",
    "omdet_turbo",
    "rt_detr",
)

PATCHES: tuple[Patch, ...] = (
    Patch(
        "torch.nn.modules.transformer:_detect_is_causal_mask",
        replacements.stated_causality,
        "nn.TransformerEncoder and nn.TransformerDecoder compare the mask's values with a causal "
        "one to pick a kernel: a branch on data. The mask itself is applied either way. Until "
        "torch.export skips the check.",
    ),
    Patch(
        "torch.nn.functional:scaled_dot_product_attention",
        replacements.shared_heads,
        "One head of keys for all heads of queries (Falcon) is broadcast without being said, "
        "which PyTorch's translation to ONNX refuses. Until it broadcasts too.",
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:shift_tokens_right",
            replacements.first_is_last,
            "Squeezes the last tokens of the batch over all axes, so that a batch of 1 becomes a "
            "number (modeling_mbart.py, shift_tokens_right), which a graph for any batch cannot. "
            "Until transformers names the axis.",
        )
        for name in ("mbart", "plbart")
    ),
    Patch(
        "onnxscript.rewriter._matcher:SimplePatternMatcher.match",
        replacements.first_node_first,
        "Reads the whole graph for every node and every pattern of several outputs "
        "(_matcher.py, match), before it looks whether the node fits: a quarter of the export of "
        "Deformable DETR. The same matches are found. Until onnxscript looks first.",
    ),
    Patch(
        "torch.onnx._internal.fx.passes.type_promotion:_TypePromotionInterpreter.run_node",
        thrift.promoted_in_place,
        "Computes the shapes of the whole graph once more to find operators on mixed types, of "
        "which there are few (type_promotion.py, run_node). Until PyTorch looks at types alone.",
    ),
    Patch(
        "onnxscript._internal.values:TracedOnnxFunction.function_ir",
        thrift.domain_alone,
        "Parses the source of 500 translations at each export for the domain of their names "
        "(torch_2_5.py, get_torchlib_ops). Until onnxscript reads the opset's.",
    ),
    Patch(
        "torch.fx.config:do_not_emit_stack_traces",
        thrift.no_stack_traces,
        "Each node gets the text of the stack it was traced on, which a bundle does not keep. "
        "Until torch.export takes no traces by default.",
    ),
    Patch(
        "torch.nn.modules.pooling:MaxPool1d.forward",
        replacements.flat_pool,
        "torch.max_pool1d takes the length it is traced with for a constant; max_pool2d does not. "
        "Until torch.export keeps it.",
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:mamba_selective_scan",
            replacements.one_scan,
            "Loops over the sequence in Python (modeling_mamba.py, mamba_selective_scan), which "
            "tracing unrolls for the example's length. As a Scan it is one node at any length. "
            "Until PyTorch translates associative_scan to ONNX, which transformers has.",
        )
        for name in ("mamba", "falcon_mamba", "jamba", "zamba")
    ),
    Patch(
        "transformers.models.longt5.modeling_longt5:_create_global_aggregates",
        replacements.sums_of_blocks,
        "Counts the blocks of a text with one_hot, which takes their number in the example for a "
        "constant (modeling_longt5.py). Until torch.export keeps it.",
    ),
    Patch(
        f"{_LLAMA4}:Llama4TextRotaryEmbedding.forward",
        replacements.real_rotation,
        "Turns with complex numbers (modeling_llama4.py, apply_rotary_emb), which ONNX has not. "
        "Until PyTorch's translation to ONNX writes them as pairs throughout.",
    ),
    Patch(
        f"{_LLAMA4}:apply_rotary_emb",
        replacements.rotated_pairs,
        "Takes the complex numbers of Llama4TextRotaryEmbedding, which is patched too. Until then.",
    ),
    Patch(
        "transformers.models.dbrx.modeling_dbrx:DbrxExperts.forward",
        experts.all_experts,
        "Loops over the experts that some token chose (modeling_dbrx.py, DbrxExperts), a number "
        "that depends on data. All of them on every token is the same sum, for more arithmetic. "
        "Until DBRX has transformers' own experts, which have a form for export.",
    ),
    *(
        Patch(
            f"{module}:{kind}.forward",
            replacement,
            "Loops over the experts that some token chose, a number that depends on data. All of "
            "them on every token is the same sum, for more arithmetic. Until transformers has its "
            "own experts there, which have a form for export.",
        )
        for module, kind, replacement in (
            (_SWITCH, "SwitchTransformersExperts", experts.one_of_all),
            (_NLLB, "NllbMoeExperts", experts.masked_of_all),
        )
    ),
    Patch(
        f"{_SWITCH}:SwitchTransformersTop1Router.forward",
        experts.routed_as_cast,
        "Casts its own layer at every call (SwitchTransformersTop1Router), and tracing cannot "
        "swap weights. Until transformers casts it once.",
    ),
    Patch(
        f"{_NLLB}:NllbMoeTop2Router._cast_classifier",
        experts.uncast,
        "Casts its own layer at every call, and tracing cannot swap weights; the examples ran "
        "before, so it is cast. Until transformers casts it once.",
    ),
    Patch(
        "transformers.models.cpmant.modeling_cpmant:CpmAntModel._prepare_attention_mask",
        replacements.counted_mask,
        "Makes positions from a Python list (modeling_cpmant.py, _prepare_attention_mask), which "
        "tracing keeps at the example's length. Until transformers uses torch.arange there.",
    ),
    Patch(
        f"{_CANINE}:CanineAttention.forward",
        replacements.blocks_as_mask,
        "Cuts the characters into blocks in a Python loop (modeling_canine.py, CanineAttention) "
        "that tracing unrolls. With a mask it is the same numbers at any length. Until "
        "transformers has the blocks as a mask.",
    ),
    *(
        Patch(
            f"{module}:{attention}.forward",
            replacements.dense_window,
            "Attention in a sliding window is cut out with sizes and strides that tracing takes "
            "for constants, and looks up the global tokens of the batch, a size that depends on "
            "data. With a mask it is the same numbers at any length, and one Attention node. Until "
            "transformers has it as a mask.",
        )
        for module, attention in (
            (_LONGFORMER, "LongformerSelfAttention"),
            (_LED, "LEDEncoderSelfAttention"),
        )
    ),
    *(
        Patch(
            f"{module}:{model}._pad_to_window_size",
            replacements.unpadded,
            "Pads to a multiple of the window, an `if` on the length; attention with a mask needs "
            "no padding. Until transformers has the window as a mask.",
        )
        for module, model in ((_LONGFORMER, "LongformerModel"), (_LED, "LEDEncoder"))
    ),
    *(
        Patch(
            f"{module}:{model}.forward",
            replacements.said_globality,
            "Whether there are global tokens is asked of the data; whether there is a mask for "
            "them is known. Until transformers asks for the mask.",
        )
        for module, model in ((_LONGFORMER, "LongformerModel"), (_LED, "LEDEncoder"))
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:{kind}FrozenBatchNorm2d.forward",
            detection.frozen_norm,
            "Ten operators for each batch norm, all traced and then folded. As the operator it is, "
            "it is one. Until transformers calls torch's own.",
        )
        for name, kind in _FROZEN_NORMS.items()
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:{kind}.build_sine_position_embedding",
            functools.partial(detection.sine_positions, shift=shift),
            "Turns rows and columns, even and odd features each on their own: half of the "
            "operators do. Until transformers has them beside each other.",
        )
        for name, kind, shift in _SINES
    ),
    *(
        Patch(
            f"transformers.models.{name}.modeling_{name}:MultiScaleDeformableAttention.forward",
            detection.sampled_levels,
            "Puts the heads in front at every level, of which once is enough. Until transformers "
            "does it before the loop.",
        )
        for name in _DEFORMABLE
    ),
    Patch(
        "transformers.models.deformable_detr.modeling_deformable_detr:"
        "DeformableDetrEncoder.get_reference_points",
        detection.all_reference_points,
        "Makes the middles of the pixels level by level from meshes, all of them constants of the "
        "image's size. Until transformers has them in one tensor.",
    ),
)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Apply ``PATCHES``; whatever happens, take them back."""
    with contextlib.ExitStack() as stack:
        for patch in PATCHES:
            module, _, path = patch.target.partition(":")
            if module.startswith(_MODELS) and module not in sys.modules:
                continue  # nobody has a model of it
            owner: Any = importlib.import_module(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original, held = getattr(owner, name), inspect.getattr_static(owner, name)
            stack.callback(setattr, owner, name, held)
            instead = patch.replacement(original)
            is_static = isinstance(held, staticmethod)
            setattr(owner, name, staticmethod(instead) if is_static else instead)
        yield
