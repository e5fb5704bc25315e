//! The main job: what a run is made of, from the checked plan to the last committed step and its summary.

pub(crate) mod checks;
pub(crate) mod clean;
pub(crate) mod data_files;
pub(crate) mod follower;
pub(crate) mod generate;
pub(crate) mod identity;
pub(crate) mod log_folder;
pub(crate) mod nonfinite;
pub(crate) mod own_rules;
pub(crate) mod progress;
pub(crate) mod prompt_builder;
pub(crate) mod run;
pub(crate) mod select;
pub(crate) mod steps;
pub(crate) mod structured;
mod summary;
