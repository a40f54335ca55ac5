"""Bridges: `jumprelu` SAEs for everyone, the checkpoints of the AFA authors' training code, SAEBench on local data."""

from sae_lens_afa.interop.agreement import JumpReLUReport, jumprelu_report
from sae_lens_afa.interop.export_folder import export_to_folder
from sae_lens_afa.interop.jumprelu import export_jumprelu
from sae_lens_afa.interop.reference_checkpoint import convert_reference_checkpoint
from sae_lens_afa.interop.saebench import saebench_core
from sae_lens_afa.interop.saebench_probing import saebench_sparse_probing

__all__ = [
    "JumpReLUReport",
    "convert_reference_checkpoint",
    "export_jumprelu",
    "export_to_folder",
    "jumprelu_report",
    "saebench_core",
    "saebench_sparse_probing",
]
