//! The share of a machine's cores that one of its ranks takes: its affinity, from which libtorch, rayon and the
//! kernels' pool take their number of threads.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::ranks::Env;

/// The cores of this process, neighbours in the machine next to each other.
fn own_cores() -> std::io::Result<Vec<usize>> {
    let mask = sched_getaffinity(None)?;
    let mut cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)).collect();
    // Both threads of a core go to one rank, where the system says which they are.
    let topology = |core: usize, name: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/{name}");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0)
    };
    cores
        .sort_by_cached_key(|&core| (topology(core, "physical_package_id"), topology(core, "core_id"), core));
    Ok(cores)
}

/// The cores of one rank: an equal part, or one core that several ranks share when there are too few.
fn share(cores: &[usize], local_rank: u32, local_size: u32) -> Vec<usize> {
    let (rank, size) = (local_rank as usize, local_size.max(1) as usize);
    if cores.len() < size {
        return cores.get(rank % cores.len().max(1)).copied().into_iter().collect();
    }
    cores.get(cores.len() * rank / size..cores.len() * (rank + 1) / size).unwrap_or_default().to_vec()
}

fn bind(cores: &[usize]) -> std::io::Result<()> {
    let mut mask = CpuSet::new();
    cores.iter().for_each(|&core| mask.set(core));
    Ok(sched_setaffinity(None, &mask)?)
}

/// Binds this thread, and what it starts from now on, to the part of a rank; returns how many cores that is.
pub(crate) fn take_share(local_rank: u32, local_size: u32) -> std::io::Result<usize> {
    let mine = share(&own_cores()?, local_rank, local_size);
    bind(&mine)?;
    Ok(mine.len())
}

/// Calls `start` with this thread bound to the part of a rank: a process that it starts has the part from its first
/// instruction on, before any library counts the cores.
pub(crate) fn with_share<T>(
    local_rank: u32,
    local_size: u32,
    start: impl FnOnce() -> std::io::Result<T>,
) -> std::io::Result<T> {
    let all = own_cores()?;
    bind(&share(&all, local_rank, local_size))?;
    let started = start();
    bind(&all)?;
    started
}

/// Whether the launcher has given each rank cores of its own already.
pub(crate) fn are_bound(env: Env<'_>) -> bool {
    if env("SLURM_STEP_ID").is_some() {
        return env("SLURM_CPU_BIND_TYPE").is_some_and(|kind| !kind.is_empty() && !kind.starts_with("none"));
    }
    // Open MPI binds ranks and has no variable that says so.
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    own_cores().is_ok_and(|cores| cores.len() < count_list(&online))
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some((last + 1).saturating_sub(first))
    };
    list.trim().split(',').filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_is_shared_out_once() {
        for num_cores in 1..20 {
            let cores: Vec<usize> = (10..10 + num_cores).collect();
            for size in 1..9 {
                let parts: Vec<Vec<usize>> = (0..size).map(|rank| share(&cores, rank, size)).collect();
                assert!(parts.iter().all(|part| !part.is_empty()));
                let lens: Vec<usize> = parts.iter().map(Vec::len).collect();
                assert!(lens.iter().max().unwrap() - lens.iter().min().unwrap() <= 1, "{lens:?}");
                if num_cores >= size as usize {
                    assert_eq!(parts.concat(), cores);
                }
            }
        }
    }

    #[test]
    fn lists_of_cores_are_counted() {
        for (list, expect) in [("0-1\n", 2), ("0-3,8", 5), ("7", 1), ("", 0), ("x-2", 0)] {
            assert_eq!(count_list(list), expect, "{list}");
        }
    }

    #[test]
    fn a_process_that_is_started_has_the_share() {
        let count = |local_size| {
            let output = with_share(0, local_size, || {
                std::process::Command::new("nproc").env_remove("OMP_NUM_THREADS").output()
            })
            .unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<usize>().unwrap()
        };
        let all = own_cores().unwrap().len();
        assert_eq!((count(1), count(u32::MAX), count(2)), (all, 1, (all / 2).max(1)));
        assert_eq!(own_cores().unwrap().len(), all);
    }
}
