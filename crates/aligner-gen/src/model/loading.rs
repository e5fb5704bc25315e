//! A bar on a terminal while weights are read.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_spec::Region;
use nemo_format::{FormatError, Fp8Weights, TensorMeta, TensorSource};

/// A source that shows how much of it has been read.
pub(crate) struct WatchedSource<'a> {
    inner: &'a dyn TensorSource,
    bar: ProgressBar,
    total_bytes: u64,
    read_bytes: AtomicU64,
}

impl<'a> WatchedSource<'a> {
    /// `part`: how much of the source will be read, as a share.
    pub(crate) fn new(inner: &'a dyn TensorSource, part: f64, bars: &MultiProgress) -> Self {
        let sizes = inner.names().filter_map(|name| inner.meta(name)?.size_bytes());
        let total_bytes = (sizes.fold(0, u64::saturating_add) as f64 * part) as u64;
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr_with_hz(4));
        let bar = bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} loading {bytes}/{total_bytes} ETA {eta}") {
            bar.set_style(style);
        }
        Self { inner, bar, total_bytes, read_bytes: AtomicU64::new(0) }
    }

    fn elem_bytes(&self, name: &str) -> usize {
        self.inner.meta(name).map_or(1, |meta| meta.dtype.size_bytes())
    }

    fn has_read(&self, num_bytes: usize) {
        let before = self.read_bytes.fetch_add(num_bytes as u64, Ordering::Relaxed);
        // A tensor that is read twice, such as a tied one, is counted twice.
        self.bar.set_position((before + num_bytes as u64).min(self.total_bytes));
    }
}

impl Drop for WatchedSource<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl TensorSource for WatchedSource<'_> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.inner.names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.inner.meta(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        self.inner.read(name, region, dst)?;
        self.has_read(dst.len());
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let bytes = self.inner.mapped_bytes(name)?;
        self.has_read(bytes.len());
        Some(bytes)
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        self.inner.fp8().map(|_| self as &dyn Fp8Weights)
    }
}

/// Counted as the numbers that they stand for, of which the whole is the sum.
impl Fp8Weights for WatchedSource<'_> {
    fn row_scales(&self, name: &str) -> Option<Vec<f32>> {
        self.inner.fp8()?.row_scales(name)
    }

    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let stored = self.inner.fp8();
        let stored = stored.ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        stored.read_numbers(name, region, dst)?;
        self.has_read(dst.len() * self.elem_bytes(name));
        Ok(())
    }

    fn mapped_numbers(&self, name: &str) -> Option<&[u8]> {
        let numbers = self.inner.fp8()?.mapped_numbers(name)?;
        self.has_read(numbers.len() * self.elem_bytes(name));
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_read_is_counted_and_passed_on() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fixtures/mcore_llama/llama_fp32_torch_dist.nemo");
        let checkpoint = nemo_format::Checkpoint::open(&path).unwrap();
        let inner = checkpoint.tensors();
        let watched = WatchedSource::new(inner, 1.0, &MultiProgress::new());
        let names: Vec<&str> = watched.names().collect();
        assert_eq!(names, inner.names().collect::<Vec<_>>());
        let mut num_bytes = 0;
        for name in &names {
            let bytes = watched.read_whole(name).unwrap();
            assert_eq!(bytes, inner.read_whole(name).unwrap());
            num_bytes += bytes.len() as u64;
        }
        assert_eq!((watched.bar.position(), watched.total_bytes), (num_bytes, num_bytes));
        let _ = watched.mapped_bytes(names[0]);
        assert_eq!(watched.bar.position(), num_bytes);
    }
}
