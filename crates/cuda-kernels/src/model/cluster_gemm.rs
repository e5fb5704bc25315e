//! The launcher of the GEMM in clusters, for batches that are larger than a small one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, Stream, TensorMap};
use torch_ext::ExtError;

use super::cluster_shape::{ClusterShape, ClusterTile};
use super::gemm::{Activated, Gemm, GemmOutArgs};
use super::{KernelConfig, ModelKernels};
use crate::tensors::{Tensors, bad, int};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ClusterGemmArgs {
    to: GemmOutArgs,
    num_in: i32,
    row_clusters: i32,
}

/// What a kernel is compiled for.
type ClusterGemmKey = (ClusterTile, Activated);

/// The kernels, compiled when they are first asked for.
#[derive(Debug)]
pub(super) struct ClusterGemmKernels {
    device: Device,
    config: KernelConfig,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<HashMap<ClusterGemmKey, Option<Arc<Kernel>>>>,
}

impl ClusterGemmKernels {
    pub(super) fn new(device: &Device, config: &KernelConfig, cache_dir: Option<&Path>) -> Self {
        let cache_dir = cache_dir.map(Path::to_path_buf);
        Self { device: *device, config: *config, cache_dir, loaded: Mutex::default() }
    }

    /// None where there is none for this type or GPU.
    fn get(&self, tile: ClusterTile, activated: Activated) -> Result<Option<Arc<Kernel>>, ExtError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&(tile, activated)) {
            return Ok(kernel.clone());
        }
        let load =
            |program| Module::load(&self.device, &program, self.cache_dir.as_deref())?.kernel("cluster_gemm");
        let program = self.config.cluster_gemm(self.device.arch()?, tile, activated);
        let kernel = program.map(load).transpose()?.map(Arc::new);
        loaded.insert((tile, activated), kernel.clone());
        Ok(kernel)
    }
}

impl ModelKernels {
    fn cluster_kernel(
        &self,
        num_rows: i64,
        [weight_rows, num_in]: [i64; 2],
        activated: Activated,
    ) -> Result<Option<(ClusterShape, Arc<Kernel>)>, ExtError> {
        let Some(sizes) = self.gemm_sizes([weight_rows, num_in], activated) else { return Ok(None) };
        let Some(shape) = ClusterShape::of(num_rows, &sizes) else { return Ok(None) };
        Ok(self.cluster_gemms.get(shape.tile, activated)?.map(|kernel| (shape, kernel)))
    }

    /// Whether [`Self::cluster_gemm`] multiplies so many rows with a weight `[num_out, num_in]` on this GPU. Loads the
    /// kernel.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or loaded.
    pub fn has_cluster_gemm(
        &self,
        num_rows: i64,
        shape: [i64; 2],
        activated: Activated,
    ) -> Result<bool, ExtError> {
        Ok(self.cluster_kernel(num_rows, shape, activated)?.is_some())
    }

    /// Enqueues a GEMM of up to [`MAX_CLUSTER_GEMM_ROWS`](super::MAX_CLUSTER_GEMM_ROWS) rows. For each output it is the
    /// same chain of `wgmma` as in [`Self::gemm`], so the bits are the same.
    ///
    /// # Errors
    /// When a tensor does not fit, or [`Self::has_cluster_gemm`] says no.
    pub fn cluster_gemm(&self, stream: &Stream, gemm: &Gemm<'_>) -> Result<(), ExtError> {
        let tensors = Tensors::on(stream);
        let checked = gemm.check(&tensors, self.config.kind)?;
        let activated = gemm.out.activated();
        let (shape, kernel) = self
            .cluster_kernel(checked.num_rows, checked.weight, activated)?
            .ok_or_else(|| bad("rows of `x`", "as many as `has_cluster_gemm` takes", checked.num_rows))?;
        let tile = shape.tile;
        let tile_outputs = tile.weight_rows / checked.halves as u32;
        let x = TensorMap::of(gemm.x, stream.device(), tile.block_rows() / tile.across, "x")?;
        let weight = TensorMap::of(gemm.weight, stream.device(), tile_outputs / tile.along, "weight")?;
        let args = ClusterGemmArgs {
            to: checked.to,
            num_in: int(checked.weight[1], "inputs")?,
            row_clusters: shape.row_clusters as i32,
        };
        let launch = Launch {
            shared_bytes: tile.shared_bytes(),
            cluster: tile.across * tile.along,
            ..Launch::linear(shape.num_blocks, tile.num_threads())
        };
        kernel.launch(&launch, stream, &[Arg::value(&x), Arg::value(&weight), Arg::value(&args)])
    }
}
