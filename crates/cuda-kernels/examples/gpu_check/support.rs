//! What the checks share: the GPU, random tensors and comparisons.

use std::error::Error;
use std::path::Path;

use cuda_kernels::{KernelConfig, ModelKernels, SamplerKernels, ScoreKind};
use cuda_runtime::{Device, Stream};
use tch::{Kind, Tensor};

pub(crate) type Checked = Result<(), Box<dyn Error>>;

/// The attention heads that a case has.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) kind: Kind,
    pub(crate) head_dim: i64,
    /// Query heads of a group.
    pub(crate) queries: i64,
    pub(crate) groups: i64,
    pub(crate) has_fp8_kv: bool,
    /// What scores are capped at.
    pub(crate) softcap: Option<f32>,
    /// How many keys a row sees.
    pub(crate) local_tokens: Option<i64>,
}

impl Heads {
    pub(crate) fn new(kind: Kind, head_dim: i64, queries: i64, groups: i64) -> Self {
        Self { kind, head_dim, queries, groups, has_fp8_kv: false, softcap: None, local_tokens: None }
    }

    pub(crate) fn with_fp8_kv(self) -> Self {
        Self { has_fp8_kv: true, ..self }
    }
}

/// The first GPU, and where compiled kernels are kept while this runs.
pub(crate) struct Gpu {
    pub(crate) device: Device,
    pub(crate) stream: Stream,
    cache: tempfile::TempDir,
}

impl Gpu {
    pub(crate) fn open() -> Result<Self, Box<dyn Error>> {
        let device = Device::open(0)?;
        let stream = Stream::current(&device)?;
        Ok(Self { device, stream, cache: tempfile::tempdir()? })
    }

    pub(crate) fn kernels(
        &self,
        kind: Kind,
        head_dim: u32,
        queries_per_group: u32,
    ) -> Result<ModelKernels, Box<dyn Error>> {
        self.kernels_for(&Heads::new(kind, i64::from(head_dim), i64::from(queries_per_group), 1))
    }

    pub(crate) fn kernels_for(&self, heads: &Heads) -> Result<ModelKernels, Box<dyn Error>> {
        let config = KernelConfig {
            kind: heads.kind,
            head_dim: heads.head_dim as u32,
            queries_per_group: heads.queries as u32,
            has_fp8_kv: heads.has_fp8_kv,
            scores: ScoreKind { is_capped: heads.softcap.is_some(), is_local: heads.local_tokens.is_some() },
        };
        Ok(ModelKernels::load(&self.device, &config, Some(self.cache.path()))?)
    }

    /// Where compiled kernels are kept while this runs.
    pub(crate) fn cache_dir(&self) -> &Path {
        self.cache.path()
    }

    pub(crate) fn sampler_kernels(&self) -> Result<SamplerKernels, Box<dyn Error>> {
        Ok(SamplerKernels::load(&self.device, Some(self.cache.path()))?)
    }

    pub(crate) fn put(&self, tensor: &Tensor) -> Result<Tensor, Box<dyn Error>> {
        Ok(tensor.f_to_device(self.device.tch())?.f_contiguous()?)
    }

    pub(crate) fn ints(&self, values: &[i32], shape: &[i64]) -> Result<Tensor, Box<dyn Error>> {
        self.put(&Tensor::f_from_slice(values)?.f_reshape(shape)?)
    }

    pub(crate) fn random(&self, shape: &[i64], kind: Kind) -> Result<Tensor, Box<dyn Error>> {
        Ok(Tensor::f_randn(shape, (Kind::Float, self.device.tch()))?.f_to_kind(kind)?)
    }

    /// Poisoned, so that what a kernel does not write is seen.
    pub(crate) fn unset(&self, shape: &[i64], kind: Kind) -> Result<Tensor, Box<dyn Error>> {
        Ok(Tensor::f_full(shape, f64::NAN, (kind, self.device.tch()))?)
    }

    pub(crate) fn zeros(&self, shape: &[i64], kind: Kind) -> Result<Tensor, Box<dyn Error>> {
        Ok(Tensor::f_zeros(shape, (kind, self.device.tch()))?)
    }
}

pub(crate) fn double(tensor: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    Ok(tensor.f_to_kind(Kind::Double)?)
}

/// The norm of the difference over the norm of what is right; a NaN on either side stays one.
pub(crate) fn relative_error(actual: &Tensor, expect: &Tensor) -> Result<f64, Box<dyn Error>> {
    let (actual, expect) = (double(actual)?, double(expect)?);
    let difference = (actual.f_sub(&expect)?).f_norm()?.f_double_value(&[])?;
    Ok(difference / expect.f_norm()?.f_double_value(&[])?.max(1e-300))
}

/// What rounding to a type may do to a result whose inside is float32.
pub(crate) fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 4e-3,
        Kind::Half => 5e-4,
        _ => 2e-6,
    }
}

pub(crate) fn same(a: &Tensor, b: &Tensor) -> Result<bool, Box<dyn Error>> {
    Ok(a.f_equal(b)?)
}

pub(crate) const KINDS: [Kind; 3] = [Kind::BFloat16, Kind::Half, Kind::Float];
