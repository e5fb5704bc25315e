//! stub
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// x
    Cpu,
}
pub(crate) fn run(_w: &crate::workspace::Workspace, _a: &Bench) -> anyhow::Result<()> {
    Ok(())
}
