//! Errors of libtorch and of the shim over it.

/// A tensor that an entry or a kernel cannot take.
#[derive(Debug, thiserror::Error)]
#[error("`{what}` must be {expected}, not {actual}")]
pub struct BadTensor {
    /// Which argument.
    pub what: &'static str,
    /// What is needed.
    pub expected: String,
    /// What was given.
    pub actual: String,
}

/// An error of a libtorch call, by way of tch or of the C++ shim.
#[derive(Debug, thiserror::Error)]
pub enum ExtError {
    /// A tensor that an entry cannot take.
    #[error(transparent)]
    BadTensor(#[from] BadTensor),
    /// A GPU gives no more memory.
    #[error("the GPU is out of memory{}", memory_facts(*.asked_bytes, *.free_bytes))]
    DeviceOutOfMemory {
        /// What was asked for, if that is known; libtorch rounds it to a hundredth of its unit.
        asked_bytes: Option<u64>,
        /// What was free then, if that is known.
        free_bytes: Option<u64>,
    },
    /// libtorch's CUDA half refused.
    #[error("`{call}` failed: {reason}")]
    Cuda {
        /// What was called.
        call: &'static str,
        /// Its message.
        reason: String,
    },
    /// libtorch refused.
    #[error(transparent)]
    Torch(tch::TchError),
    /// A call of the C++ shim threw; the exception's own text.
    #[error("{0}")]
    Libtorch(String),
}

impl From<tch::TchError> for ExtError {
    /// libtorch says by text alone that a GPU's memory is used up.
    fn from(error: tch::TchError) -> Self {
        match &error {
            tch::TchError::Torch(text) if text.contains("CUDA out of memory") => Self::device_memory(text),
            _ => Self::Torch(error),
        }
    }
}

impl ExtError {
    /// Whether a GPU's memory is used up, so that a smaller request may succeed.
    pub fn is_device_out_of_memory(&self) -> bool {
        matches!(self, Self::DeviceOutOfMemory { .. })
    }

    /// The error that libtorch words so: `CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of
    /// 79.11 GiB of which 1.53 GiB is free. ..`
    pub(crate) fn device_memory(text: &str) -> Self {
        Self::DeviceOutOfMemory {
            asked_bytes: size_after(text, "Tried to allocate "),
            free_bytes: size_after(text, "of which "),
        }
    }
}

/// The size that stands after `label`, as libtorch writes sizes.
fn size_after(text: &str, label: &str) -> Option<u64> {
    let (_, rest) = text.split_once(label)?;
    let mut words = rest.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let unit_bytes = match words.next()?.trim_end_matches(['.', ',']) {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number * unit_bytes) as u64)
}

fn memory_facts(asked_bytes: Option<u64>, free_bytes: Option<u64>) -> String {
    let facts = [
        asked_bytes.map(|bytes| format!("{bytes} bytes asked for")),
        free_bytes.map(|bytes| format!("{bytes} free")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    if facts.is_empty() { String::new() } else { format!(": {}", facts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let error = ExtError::from(tch::TchError::Torch(text.to_owned()));
        assert!(error.is_device_out_of_memory(), "{error}");
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn a_gpu_out_of_memory_is_an_error_of_its_own() {
        check(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 512.00 MiB is free. Process 1 has",
            "the GPU is out of memory: 2684354560 bytes asked for, 536870912 free",
        );
        check(
            "CUDA out of memory. Tried to allocate 20 bytes.",
            "the GPU is out of memory: 20 bytes asked for",
        );
        check("CUDA out of memory", "the GPU is out of memory");
        let other = ExtError::from(tch::TchError::Torch("shapes differ".to_owned()));
        assert!(!other.is_device_out_of_memory());
    }
}
