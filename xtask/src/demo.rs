//! stub
pub(crate) fn run(_w: &crate::workspace::Workspace) -> anyhow::Result<()> {
    Ok(())
}
