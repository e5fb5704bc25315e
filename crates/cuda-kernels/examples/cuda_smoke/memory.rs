//! Page-locked memory, weights from a mapped file, and memory that is used up.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use cuda_runtime::{CudaError, Device, Event, PinnedBuffer, Stream, Uploader};
use nemo_format::{SafetensorsSource, TensorSource};
use tch::{Kind, Tensor};
use torch_ext::ExtError;

use crate::cases::{Outcome, ensure};

pub(crate) fn pinned(device: &Device) -> Outcome {
    let stream = Stream::new(device)?;
    let mut buffer = PinnedBuffer::<[u32; 4]>::new(device, 1 << 20)?;
    ensure(buffer.as_slice()?.iter().all(|record| *record == [0; 4]), || "not zero at first".to_owned())?;
    for (record, idx) in buffer.as_mut_slice()?.iter_mut().zip(0..) {
        *record = [idx, 1, 2, 3];
    }
    let on_gpu = Tensor::f_zeros([1 << 20, 4], (Kind::Int, device.tch()))?;
    device.synchronize()?;
    buffer.copy_to(&on_gpu, &stream)?;
    let mut back = PinnedBuffer::<[u32; 4]>::new(device, 1 << 20)?;
    back.copy_from(&on_gpu, &stream)?;
    ensure(back.as_slice()? == buffer.as_slice()?, || "what came back differs".to_owned())?;
    ensure(back.is_ready()?, || "a copy is still in flight".to_owned())?;
    let small = PinnedBuffer::<f32>::new(device, 3)?;
    let refused = small.copy_to(&on_gpu, &stream);
    ensure(matches!(refused, Err(CudaError::BadTensor { .. })), || {
        format!("too large a tensor: {refused:?}")
    })?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record(&stream)?;
    for _ in 0..16 {
        buffer.copy_to(&on_gpu, &stream)?;
    }
    end.record(&stream)?;
    end.synchronize()?;
    Ok(format!("to the GPU at {:.1} GB/s", f64::from(1 << 28) / 1e6 / f64::from(start.elapsed_ms(&end)?)))
}

pub(crate) fn upload(device: &Device) -> Outcome {
    let path = std::env::temp_dir().join(format!("cuda-smoke-{}.safetensors", std::process::id()));
    let outcome = upload_from(device, &path);
    std::fs::remove_file(&path)?;
    outcome
}

/// Loads large and small tensors of a file in the page cache, against one plain copy of as many page-locked bytes.
fn upload_from(device: &Device, path: &Path) -> Outcome {
    const LARGE_ELEMS: usize = (256 << 20) + 5;
    let sizes: Vec<usize> = [vec![LARGE_ELEMS; 8], vec![4099; 64]].concat();
    write_safetensors(path, &sizes)?;
    let source = SafetensorsSource::open_file(path)?;
    let tensors = sizes
        .iter()
        .map(|size| Tensor::f_empty([*size as i64], (Kind::Uint8, device.tch())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut uploader = Uploader::new(device)?;
    device.synchronize()?;
    let mut load = || -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        for (idx, tensor) in tensors.iter().enumerate() {
            let bytes = source.mapped_bytes(&format!("t{idx}")).ok_or("the tensor is not mapped")?;
            uploader.upload(bytes, tensor)?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The file's pages are in memory, but first not yet in this process's map.
    let (first, again) = (load()?, load()?);
    for (idx, tensor) in tensors.iter().enumerate() {
        let bytes = source.mapped_bytes(&format!("t{idx}")).ok_or("the tensor is not mapped")?;
        ensure(Tensor::f_from_slice(bytes)?.f_equal(&tensor.f_to_device(tch::Device::Cpu)?)?, || {
            format!("tensor {idx} differs")
        })?;
    }
    let wrong = uploader.upload(&[0; 3], &tensors[0]);
    ensure(matches!(wrong, Err(CudaError::BadTensor { .. })), || format!("a wrong size: {wrong:?}"))?;

    let pinned = PinnedBuffer::<u8>::new(device, LARGE_ELEMS)?;
    let stream = Stream::current(device)?;
    let start = Instant::now();
    for tensor in &tensors[..8] {
        pinned.copy_to(tensor, &stream)?;
    }
    stream.synchronize()?;
    let plain = start.elapsed().as_secs_f64();
    let start = Instant::now();
    tensors[0].shallow_clone().f_copy_(&Tensor::f_from_slice(pinned.as_slice()?)?)?;
    device.synchronize()?;
    let unpinned = start.elapsed().as_secs_f64();
    let speed = |seconds: f64| 8.0 * LARGE_ELEMS as f64 / seconds / 1e9;
    Ok(format!(
        "{:.1} GB/s at first, {:.1} again; a plain pinned copy {:.1}: {:.0} % and {:.0} %; a plain copy of ordinary memory {:.1} GB/s; {} threads",
        speed(first),
        speed(again),
        speed(plain),
        100.0 * plain / first,
        100.0 * plain / again,
        speed(unpinned) / 8.0,
        rayon::current_num_threads()
    ))
}

fn write_safetensors(path: &Path, sizes: &[usize]) -> Result<(), Box<dyn Error>> {
    let mut at = 0;
    let entries: Vec<String> = sizes
        .iter()
        .enumerate()
        .map(|(idx, size)| {
            let start = at;
            at += size;
            format!(r#""t{idx}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{at}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // 65,521 is a prime, so that no piece of the file equals another at a round distance.
    let pattern: Vec<u8> =
        (0..65_521_u32).map(|value| (value.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut left = at;
    while left > 0 {
        let part = left.min(pattern.len());
        file.write_all(&pattern[..part])?;
        left -= part;
    }
    file.flush()?;
    Ok(())
}

pub(crate) fn out_of_memory(device: &Device) -> Outcome {
    let total_bytes = device.mem_get_info()?.total_bytes;
    let huge = Tensor::f_empty([2 * total_bytes as i64], (Kind::Uint8, device.tch())).map_err(ExtError::from);
    let Err(error) = huge else { return Err("twice the memory of the GPU was given".into()) };
    ensure(error.is_device_out_of_memory(), || error.to_string())?;
    // It is no lasting harm.
    let small = Tensor::f_ones([16], (Kind::Float, device.tch()))?;
    ensure(small.f_sum(Kind::Float)?.f_double_value(&[])? == 16.0, || {
        "the GPU does not work any more".to_owned()
    })?;
    device.empty_cache()?;
    Ok(error.to_string())
}
