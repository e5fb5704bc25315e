//! `N passed, N failed`: how the project's checks end, written and read.

use std::fmt;

/// How many checks passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Reads what `Display` writes, or `None` for any other line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (passed, failed) = line.trim().strip_suffix(" failed")?.split_once(" passed, ")?;
        Some(Self { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let counts = Counts { passed: 266, failed: 1 };
        assert_eq!(Counts::parse(&format!("{counts}\n")), Some(counts));
        for line in
            ["", "266 passed", "x passed, 1 failed", "-1 passed, 0 failed", "1 passed, 0 failed, 2 more"]
        {
            assert_eq!(Counts::parse(line), None, "{line}");
        }
    }
}
