//! The tasks that read and write checkpoints and packages, which `cargo xtask` builds when one of them is asked for.
//!
//! The alias builds xtask without feature `all-tasks`, in a fraction of the time: set-up, the demo and the tests need none of
//! them. In that build these tasks run the same command line with the whole program.

#[cfg(not(feature = "all-tasks"))]
pub(crate) use elsewhere::{ConvertArgs, DistArgs, FixturesArgs, HandedOn, convert, dist, fixtures, hand_on};
#[cfg(feature = "all-tasks")]
pub(crate) use here::{ConvertArgs, DistArgs, FixturesArgs, convert, dist, fixtures};

#[cfg(feature = "all-tasks")]
mod here {
    use anyhow::Result;

    pub(crate) use crate::dist::{Args as DistArgs, run as dist};
    pub(crate) use crate::fixtures::{Args as FixturesArgs, run as fixtures};
    use crate::workspace::Workspace;
    pub(crate) use convert_cli::ConvertCheckpointArgs as ConvertArgs;

    /// Converts a checkpoint.
    ///
    /// # Errors
    /// As [`convert_cli::run`].
    pub(crate) fn convert(_workspace: &Workspace, args: &ConvertArgs) -> Result<()> {
        Ok(convert_cli::run(args)?)
    }
}

#[cfg(not(feature = "all-tasks"))]
mod elsewhere {
    use std::ffi::OsString;
    use std::os::unix::process::CommandExt;

    use anyhow::{Result, anyhow};

    use crate::workspace::{Workspace, shell_line};

    /// Arguments that the whole program reads.
    #[derive(Debug, clap::Args)]
    #[command(disable_help_flag = true)]
    pub(crate) struct HandedOn {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    }

    pub(crate) type ConvertArgs = HandedOn;
    pub(crate) type DistArgs = HandedOn;
    pub(crate) type FixturesArgs = HandedOn;

    /// Becomes `cargo xtask convert-checkpoint` of the whole program.
    ///
    /// # Errors
    /// When cargo cannot be started.
    pub(crate) fn convert(workspace: &Workspace, args: &HandedOn) -> Result<()> {
        hand_on(workspace, &["convert-checkpoint"], args)
    }

    /// Becomes `cargo xtask fixtures` of the whole program.
    ///
    /// # Errors
    /// When cargo cannot be started.
    pub(crate) fn fixtures(workspace: &Workspace, args: &HandedOn) -> Result<()> {
        hand_on(workspace, &["fixtures"], args)
    }

    /// Becomes `cargo xtask dist` of the whole program.
    ///
    /// # Errors
    /// When cargo cannot be started.
    pub(crate) fn dist(workspace: &Workspace, args: &HandedOn) -> Result<()> {
        hand_on(workspace, &["dist"], args)
    }

    /// Becomes a task of the whole program.
    ///
    /// # Errors
    /// When cargo cannot be started.
    pub(crate) fn hand_on(workspace: &Workspace, task: &[&str], handed_on: &HandedOn) -> Result<()> {
        let mut cargo = workspace.cargo();
        cargo
            .args(["run", "-q", "--manifest-path"])
            .arg(workspace.path("Cargo.toml"))
            .args(["-p", "xtask", "--"]);
        cargo.args(task).args(&handed_on.args);
        // Relative paths are the user's, who may stand anywhere in the repository.
        cargo.current_dir(std::env::current_dir()?);
        // Only comes back when it could not be started.
        let error = cargo.exec();
        Err(anyhow!("cannot start `{}`: {error}", shell_line(&cargo)))
    }
}
