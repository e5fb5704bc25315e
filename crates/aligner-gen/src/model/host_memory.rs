//! How much memory this process can still have: what the machine has free, what its control groups and `ulimit -v` leave.
//!
//! Formats: proc(5), and the kernel's `cgroup-v1/memory.rst` and `cgroup-v2.rst`.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Memory that can be had without swapping and without being killed for it; `None` where the system says nothing.
pub(crate) fn available_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine =
        std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| value_bytes(&text, "MemAvailable"));
    [machine, free_of_groups(&groups, Path::new("/sys/fs/cgroup")), free_addresses()]
        .into_iter()
        .flatten()
        .min()
}

/// All memory of the machine.
pub(crate) fn total_bytes() -> Option<u64> {
    value_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// A value of `/proc/meminfo` or `/proc/self/status`, in bytes.
fn value_bytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What `ulimit -v` leaves: libtorch and the mapped checkpoint count against it.
fn free_addresses() -> Option<u64> {
    let limit = getrlimit(Resource::As).current?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(limit.saturating_sub(value_bytes(&status, "VmSize")?))
}

/// The names that one version of control groups gives its files.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// File pages that are given back under pressure, in `memory.stat`.
    reclaimable: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Names = Names { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

/// The least that the process's groups and the groups around them leave. `groups` is `/proc/self/cgroup`.
fn free_of_groups(groups: &str, root: &Path) -> Option<u64> {
    let of_line = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (names, mount) = match controllers {
            "" => (V2, root.to_owned()),
            listed if listed.split(',').any(|controller| controller == "memory") => (V1, root.join("memory")),
            _ => return None,
        };
        // In a container the path is that of the host, and the mount shows the container's own group.
        let group = mount.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_owned);
        around.filter_map(|folder: PathBuf| free_of_group(&folder, &names)).min()
    };
    groups.lines().filter_map(of_line).min()
}

fn free_of_group(folder: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    // "max" is no limit.
    let limit: u64 = read(names.limit)?.trim().parse().ok()?;
    let usage: u64 = read(names.usage)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(names.reclaimable)?.trim().parse().ok());
    let held = usage.saturating_sub(reclaimable.unwrap_or(0));
    Some(limit.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(folder: &Path, names: &Names, limit: &str, usage: u64, reclaimable: u64) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(names.limit), format!("{limit}\n")).unwrap();
        std::fs::write(folder.join(names.usage), format!("{usage}\n")).unwrap();
        let stat = format!("anon 1\n{} {reclaimable}\n", names.reclaimable);
        std::fs::write(folder.join("memory.stat"), stat).unwrap();
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(available_bytes().is_some_and(|bytes| bytes > MIB));
        let text = "MemFree: 1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(value_bytes(text, "MemAvailable"), Some(2 * MIB));
        assert_eq!(value_bytes(text, "MemAvail"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        group(&path("a"), &V2, &(100 * MIB).to_string(), 60 * MIB, 10 * MIB);
        group(&path("a/b"), &V2, "max", 20 * MIB, 0);
        assert_eq!(free_of_groups("0::/a/b\n", root.path()), Some(50 * MIB));
        group(&path("a/b"), &V2, &(30 * MIB).to_string(), 20 * MIB, 0);
        assert_eq!(free_of_groups("0::/a/b\n", root.path()), Some(10 * MIB));
        group(&path("a/b"), &V2, &MIB.to_string(), 20 * MIB, 0);
        assert_eq!(free_of_groups("0::/a/b\n", root.path()), Some(0));
        assert_eq!(free_of_groups("0::/elsewhere\n1:cpu:/a\n", root.path()), None);
    }

    #[test]
    fn the_first_version_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        group(&root.path().join("memory"), &V1, "9223372036854771712", 60 * MIB, 0);
        let job = root.path().join("memory/slurm/job_7");
        group(&job, &V1, &(64 * MIB).to_string(), 40 * MIB, 8 * MIB);
        let groups = "5:cpu,cpuacct:/x\n4:memory:/slurm/job_7\n0::/\n";
        assert_eq!(free_of_groups(groups, root.path()), Some(32 * MIB));
    }
}
