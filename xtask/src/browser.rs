//! `cargo xtask report-test`: the page of `aligner-gen report`, in a browser, as wide as a phone and as a desk.
//!
//! A script at the end of a copy of the page uses it as a reader would, and leaves what it saw in an attribute, which the
//! browser prints with the page.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::programs;
use crate::workspace::{Workspace, probe, run as run_command, say, shell_line};

const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// Without them a browser looks for its maker's servers.
const OPTIONS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
];
const NUM_SAMPLES: usize = 45;
/// Of the sample that is searched for.
const NEEDLE: (usize, &str) = (41, "a needle");
/// Of the phone and of the desk.
const WIDTHS: [u32; 2] = [375, 1280];
const MARK: &str = "data-seen=\"";

/// What a reader does: what is on the first page, the second one, a text that there is and one that there is not. A frame
/// gives the page its width, since a window has a least one.
const READER: &str = r#"
<script>
addEventListener("load", () => {
  const place = () => document.getElementById("place").textContent + "; " + document.querySelectorAll("article").length;
  const seen = [document.documentElement.scrollWidth <= WIDTH ? "fits" : "is " + document.documentElement.scrollWidth + " wide"];
  const look = () => seen.push(place());
  const search = (text) => { query.value = text; query.dispatchEvent(new Event("input")); look(); };
  look();
  document.getElementById("on").click();
  look();
  search("NEEDLE");
  seen.push(document.querySelector("article div").textContent);
  search("there is no such text");
  parent.document.documentElement.dataset.seen = seen.join(" | ");
});
</script>
"#;

/// The browser that is installed, if one is.
pub(crate) fn installed(workspace: &Workspace) -> Option<&'static str> {
    BROWSERS.into_iter().find(|name| probe(workspace.command(name).arg("--version")).is_some())
}

/// Opens the page and uses it.
///
/// # Errors
/// When no browser is installed, or the page is not what its reader needs.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let Some(browser) = installed(workspace) else {
        bail!("no browser is installed: one of {} (`apt-get install chromium`)", BROWSERS.join(", "));
    };
    // As the tests' own build.
    let mut built = programs::build_with(workspace, "dev", &["--workspace", "--bin", "aligner-gen"])?;
    let program = built.remove("aligner-gen").context("cargo named no executable of `aligner-gen`")?;
    let folder = tempfile::tempdir().context("cannot create a working folder")?;
    let results = folder.path().join("generations");
    fs::create_dir(&results).context("cannot create a folder for results")?;
    fs::write(results.join("generations.jsonl"), lines()).context("cannot write results")?;
    let page = folder.path().join("report.html");
    let mut report = workspace.command(program);
    report.arg("report").arg(folder.path()).arg("--output").arg(&page).stdout(Stdio::null());
    run_command(&mut report)?;
    let page = fs::read_to_string(&page).context("cannot read the report")?;
    for width in WIDTHS {
        let seen = read_page(workspace, browser, folder.path(), &page, width)?;
        let expect = format!(
            "fits | 1 to 20 of {NUM_SAMPLES}; 20 | 21 to 40 of {NUM_SAMPLES}; 20 | 1 to 1 of 1; 1 | sample {} | none; 0",
            NEEDLE.0
        );
        if seen != expect {
            bail!("a page {width} wide: a reader sees `{seen}`, expected `{expect}`");
        }
        say(&format!("report, {width} wide: {seen}"));
    }
    Ok(())
}

/// Results with texts that a page could break at: long words, and marks of its own language.
fn lines() -> String {
    let line = |index: usize| -> Value {
        let prompt =
            format!("Question {index} {} </script><script>document.body.remove()</script>", "x".repeat(400));
        let answer = if index == NEEDLE.0 { NEEDLE.1.to_owned() } else { "<b>".repeat(120) };
        json!({
            "index": index,
            "prompt": prompt,
            "responses": [answer, format!("answer {index}")],
            "finish_reasons": ["eos", "length"],
            "num_tokens": [index + 1, 7],
        })
    };
    (0..NUM_SAMPLES).map(|index| format!("{}\n", line(index))).collect()
}

fn read_page(workspace: &Workspace, browser: &str, folder: &Path, page: &str, width: u32) -> Result<String> {
    let reader = READER.replace("WIDTH", &width.to_string()).replace("NEEDLE", NEEDLE.1);
    let Some((before, after)) = page.rsplit_once("</body>") else { bail!("the report has no end") };
    let used = format!("{before}{reader}</body>{after}");
    // Documents in a frame of this kind are its parent's own.
    let escaped = used.replace('&', "&amp;").replace('"', "&quot;");
    let frame = format!(
        "<!DOCTYPE html><html><body><iframe style=\"width: {width}px; height: 700px; border: 0\" srcdoc=\"{escaped}\"></iframe></body></html>"
    );
    let path = folder.join(format!("frame-{width}.html"));
    fs::write(&path, frame).context("cannot write the page to open")?;
    let mut command = workspace.command(browser);
    command.args(OPTIONS);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    command.arg("--dump-dom").arg(format!("file://{}", path.display()));
    let line = shell_line(&command);
    let output = command.stderr(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    let shown = String::from_utf8_lossy(&output.stdout);
    let seen = shown.split_once(MARK).and_then(|(_, rest)| rest.split_once('"'));
    match seen {
        Some((seen, _)) => Ok(seen.to_owned()),
        None => bail!("`{line}` ended with {} and shows no page that was used", output.status),
    }
}
