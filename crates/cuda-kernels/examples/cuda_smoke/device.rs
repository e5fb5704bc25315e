//! The device, its streams and events.

use cuda_runtime::{Device, Event, Stream, device_count};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};

pub(crate) fn facts(device: &Device) -> Outcome {
    let (major, minor) = device.compute_capability()?;
    let memory = device.mem_get_info()?;
    ensure(memory.free_bytes <= memory.total_bytes && memory.free_bytes > 0, || format!("{memory:?}"))?;
    let num_devices = device_count()?;
    let missing = Device::open(num_devices).err().map(|error| error.to_string()).unwrap_or_default();
    ensure(missing.contains("there is no GPU"), || format!("a GPU too many: `{missing}`"))?;
    Ok(format!(
        "1 of {num_devices}, {}, capability {major}.{minor}, {} multiprocessors, {} bytes of shared memory a block, {} of {} MiB free",
        device.name()?,
        device.num_sms()?,
        device.max_shared_bytes()?,
        memory.free_bytes >> 20,
        memory.total_bytes >> 20
    ))
}

pub(crate) fn copy_speed(device: &Device) -> Outcome {
    const SIZE_BYTES: i64 = 1 << 30;
    let from = Tensor::f_ones([SIZE_BYTES], (Kind::Uint8, device.tch()))?;
    let mut to = Tensor::f_zeros([SIZE_BYTES], (Kind::Uint8, device.tch()))?;
    let (main, side) = (Stream::current(device)?, Stream::new(device)?);
    ensure(main != side, || "a new stream is the current one".to_owned())?;
    let filled = Event::untimed(device)?;
    filled.record(&main)?;
    side.wait(&filled)?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    {
        let _current = side.as_current()?;
        ensure(Stream::current(device)? == side, || "the stream is not current".to_owned())?;
        to.f_copy_(&from)?;
        start.record(&side)?;
        for _ in 0..10 {
            to.f_copy_(&from)?;
        }
        end.record(&side)?;
    }
    ensure(Stream::current(device)? == main, || "the stream before is not back".to_owned())?;
    let waited = !end.query()?;
    end.synchronize()?;
    ensure(end.query()?, || "the event is not reached".to_owned())?;
    side.synchronize()?;
    ensure(to.f_equal(&from)?, || "the copy differs".to_owned())?;
    let copied_gb = 20.0 * SIZE_BYTES as f64 / 1e9;
    Ok(format!(
        "a device copy moves {:.0} GB/s; still running after the launch: {waited}",
        copied_gb / f64::from(start.elapsed_ms(&end)?) * 1e3
    ))
}
