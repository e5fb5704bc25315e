//! Which attention the plain backend computes, as TransformerEngine's `NVTE_*` variables say.
//!
//! Rules and order: `get_attention_backend` of TransformerEngine. Flash attention and the fused one take half precisions on
//! a GPU; what is left always works. `NVTE_MASKED_SOFTMAX_FUSION`, `NVTE_ALLOW_NONDETERMINISTIC_ALGO` and, but for fp16,
//! `NVTE_APPLY_QK_LAYER_SCALING` change nothing here: no kernel of these depends on the batch or on chance.

use model_spec::Float;
use tch::Device;

use crate::ModelError;

/// Largest head that flash attention and the fused one take.
const MAX_FLASH_HEAD_DIM: usize = 256;

/// Which algorithms may be used; all, unless a variable is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSwitches {
    /// `NVTE_FLASH_ATTN`.
    pub flash: bool,
    /// `NVTE_FUSED_ATTN`.
    pub fused: bool,
    /// `NVTE_UNFUSED_ATTN`.
    pub unfused: bool,
}

impl Default for AttentionSwitches {
    fn default() -> Self {
        Self { flash: true, fused: true, unfused: true }
    }
}

/// How the plain backend computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionAlgorithm {
    /// FlashAttention 2, from libtorch.
    Flash,
    /// libtorch's `scaled_dot_product_attention`, which picks among cuDNN's and its own kernels: what stands in for
    /// TransformerEngine's fused attention.
    Sdpa,
    /// Scores, softmax and weighted sum, one after the other, in float32.
    Unfused,
}

impl AttentionSwitches {
    /// The first algorithm that is allowed and takes the heads, `head_dim` dimensions each, in the format that is
    /// computed in.
    ///
    /// # Errors
    /// When none is left.
    pub fn choose(
        self,
        device: Device,
        compute: Float,
        head_dim: usize,
    ) -> Result<AttentionAlgorithm, ModelError> {
        let takes_half = matches!(device, Device::Cuda(_))
            && compute != Float::Fp32
            && head_dim <= MAX_FLASH_HEAD_DIM
            && head_dim.is_multiple_of(8);
        let has_flash = takes_half && cfg!(feature = "cuda");
        match self {
            Self { flash: true, .. } if has_flash => Ok(AttentionAlgorithm::Flash),
            Self { fused: true, .. } if takes_half => Ok(AttentionAlgorithm::Sdpa),
            Self { unfused: true, .. } => Ok(AttentionAlgorithm::Unfused),
            Self { flash, fused, .. } => Err(ModelError::NoAttention { flash, fused, compute, head_dim }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_algorithm_that_is_left_is_taken() {
        let on_gpu = |flash, fused, unfused, compute| {
            AttentionSwitches { flash, fused, unfused }.choose(Device::Cuda(0), compute, 128)
        };
        let bf16 = Float::Bf16;
        let first = if cfg!(feature = "cuda") { AttentionAlgorithm::Flash } else { AttentionAlgorithm::Sdpa };
        assert_eq!(on_gpu(true, true, true, bf16).unwrap(), first);
        assert_eq!(on_gpu(false, true, true, bf16).unwrap(), AttentionAlgorithm::Sdpa);
        assert_eq!(on_gpu(false, false, true, bf16).unwrap(), AttentionAlgorithm::Unfused);
        assert_eq!(on_gpu(true, true, true, Float::Fp32).unwrap(), AttentionAlgorithm::Unfused);
        let error = on_gpu(true, true, false, Float::Fp32).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"no attention backend is left: NVTE_FLASH_ATTN=1, NVTE_FUSED_ATTN=1 and NVTE_UNFUSED_ATTN=0, and the first two do not take Fp32 with heads of 128: unset NVTE_UNFUSED_ATTN");
    }

    #[test]
    fn the_cpu_has_the_unfused_one() {
        let on_cpu = AttentionSwitches::default().choose(Device::Cpu, Float::Bf16, 64).unwrap();
        assert_eq!(on_cpu, AttentionAlgorithm::Unfused);
    }
}
