"""Bridges to other formats: `jumprelu` SAEs for everyone, and the checkpoints of the AFA authors' training code."""

from sae_lens_afa.interop.agreement import JumpReLUReport, jumprelu_report
from sae_lens_afa.interop.export_folder import export_to_folder
from sae_lens_afa.interop.jumprelu import export_jumprelu
from sae_lens_afa.interop.reference_checkpoint import convert_reference_checkpoint

__all__ = [
    "JumpReLUReport",
    "convert_reference_checkpoint",
    "export_jumprelu",
    "export_to_folder",
    "jumprelu_report",
]
