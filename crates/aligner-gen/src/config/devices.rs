//! `trainer.devices` and `trainer.num_nodes`: the size of the job.

use super::range::{count, out_of_range};
use super::raw::{RawDevices, RawTrainer};
use crate::exit::Failure;

/// The size of the job as the configuration has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Devices {
    /// `trainer.devices`; `None` for `auto`.
    pub(crate) per_node: Option<u32>,
    /// `trainer.num_nodes`.
    pub(crate) num_nodes: u32,
}

impl Devices {
    /// Checks `trainer.devices` and `trainer.num_nodes`.
    pub(crate) fn new(trainer: &RawTrainer) -> Result<Self, Failure> {
        let expected = "a number from 1, -1 or `auto`";
        let per_node = match &trainer.devices {
            RawDevices::Number(-1) => None,
            RawDevices::Number(number) => match u32::try_from(*number) {
                Ok(0) | Err(_) => return Err(out_of_range("trainer.devices", expected, &number.to_string())),
                Ok(number) => Some(number),
            },
            RawDevices::Name(name) if name == "auto" => None,
            RawDevices::Name(name) => {
                return Err(out_of_range("trainer.devices", expected, &format!("`{name}`")));
            }
        };
        let num_nodes = i64::try_from(trainer.num_nodes).unwrap_or(i64::MAX);
        let num_nodes = count("trainer.num_nodes", num_nodes)?;
        Ok(Self { per_node, num_nodes })
    }

    /// All ranks, where `auto` is one a machine.
    pub(crate) fn world_size(self) -> u32 {
        self.per_node.unwrap_or(1).saturating_mul(self.num_nodes)
    }
}
