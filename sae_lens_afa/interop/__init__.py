"""Bridges to other formats: `jumprelu` SAEs for everyone, and the checkpoints of the AFA authors' training code."""

from sae_lens_afa.interop.jumprelu import export_jumprelu
from sae_lens_afa.interop.reference_checkpoint import convert_reference_checkpoint
from sae_lens_afa.interop.report import JumpReLUReport, jumprelu_report

__all__ = ["JumpReLUReport", "convert_reference_checkpoint", "export_jumprelu", "jumprelu_report"]
