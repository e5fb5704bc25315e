//! Running the real binary in a folder of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A file among the fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The Llama checkpoint that most tests run on.
pub(crate) fn llama() -> PathBuf {
    fixture("mcore_llama/llama_fp32_torch_dist.nemo")
}

/// The binary.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aligner-gen"));
    // What a test asks for must not depend on who runs it.
    for name in [
        "RUST_LOG",
        "HYDRA_FULL_ERROR",
        "RUST_BACKTRACE",
        "COLUMNS",
        "RANK",
        "SLURM_STEP_ID",
        "MASTER_PORT",
        "ALIGNER_GEN_ISA",
    ] {
        command.env_remove(name);
    }
    // Tests run side by side: threads of several processes that spin for each other's core take many times as long.
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The line that says what went wrong.
    pub(crate) fn error(&self) -> String {
        let at = self.stderr.find("error: ").unwrap_or_else(|| panic!("no error in {}", self.stderr));
        self.stderr[at..].trim_end().to_owned()
    }

    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stderr:\n{}", self.stderr);
        self
    }
}

pub(crate) fn run(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Waits for a child and takes what it wrote.
pub(crate) fn wait(mut child: Child) -> Ended {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Ended { code: child.wait().unwrap().code(), stdout, stderr }
}

/// `tokenize` on this input.
pub(crate) fn tokenize(flags: &[&str], input: &str) -> Ended {
    let mut command = program();
    command.args(["tokenize", "--checkpoint"]).arg(llama()).args(flags).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    wait(child)
}

/// A job on chat data in a temporary folder.
pub(crate) struct Job {
    folder: tempfile::TempDir,
    overrides: Vec<String>,
}

impl Job {
    /// `num_samples` chat records, two responses each, in steps of two.
    pub(crate) fn new(num_samples: usize) -> Self {
        let lines: String = (0..num_samples)
            .map(|n| {
                format!(
                    "{{\"system\": \"\", \"mask\": \"User\", \"pad\": \"{}\", \"conversations\": [{{\"from\": \"User\", \
                     \"value\": \"Question {n}?\"}}, {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n",
                    "x".repeat(3000)
                )
            })
            .collect();
        Self::with_data(&lines)
    }

    pub(crate) fn with_data(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("data.jsonl"), lines).unwrap();
        let overrides = vec![
            "trainer.devices=1".to_owned(),
            "trainer.num_nodes=1".to_owned(),
            "trainer.precision=32".to_owned(),
            format!("pretrained_checkpoint.restore_from_path={}", llama().display()),
            format!("model.data.train_ds.file_path={}", folder.path().join("data.jsonl").display()),
            format!("exp_manager.explicit_log_dir={}", folder.path().join("results").display()),
            "model.global_batch_size=2".to_owned(),
            "model.generation.num_responses_to_gen=2".to_owned(),
            "model.generation.length_params.max_length=12".to_owned(),
        ];
        Self { folder, overrides }
    }

    /// Later overrides win.
    pub(crate) fn with(mut self, overrides: &[&str]) -> Self {
        self.overrides.extend(overrides.iter().map(|&text| text.to_owned()));
        self
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = program();
        command.args(&self.overrides);
        command
    }

    /// The command under `ulimit -f`, in the shell's own blocks.
    pub(crate) fn command_with_file_limit(&self, blocks: u32) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_aligner-gen")).args(&self.overrides);
        // Changes of a repository around it would be written, too, and may be many.
        command.current_dir(self.path());
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self) -> Ended {
        run(&mut self.command())
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    pub(crate) fn summary(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.results().join("summary.json")).unwrap()).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn jsonl_path(&self) -> PathBuf {
        self.results().join("generations/generations.jsonl")
    }

    pub(crate) fn jsonl(&self) -> String {
        std::fs::read_to_string(self.jsonl_path()).unwrap()
    }

    /// The lines as JSON.
    pub(crate) fn records(&self) -> Vec<serde_json::Value> {
        self.jsonl().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts the job and waits until it has written this many lines.
    pub(crate) fn start_and_wait_for_lines(&self, num_lines: usize) -> Child {
        let mut child = self.command().spawn().unwrap();
        let started = Instant::now();
        loop {
            let lines = std::fs::read(self.jsonl_path()).unwrap_or_default();
            if self::num_lines(&lines) >= num_lines {
                return child;
            }
            if let Some(status) = child.try_wait().unwrap() {
                let ended = wait(child);
                panic!("ended with {status} before line {num_lines}: {}", ended.stderr);
            }
            assert!(started.elapsed() < PATIENCE, "no line {num_lines} in time");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// How many whole lines these bytes hold.
pub(crate) fn num_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Waits until a child has written a line with this text to stderr, which is drained from then on.
pub(crate) fn wait_for_line(child: &mut Child, text: &str) {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (sender, receiver) = std::sync::mpsc::channel();
    // Ends with the child. Nobody listens once the line has come, but a full pipe would stop the child.
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let (started, mut seen) = (Instant::now(), Vec::new());
    loop {
        let left = PATIENCE.saturating_sub(started.elapsed());
        match receiver.recv_timeout(left) {
            Ok(line) if line.contains(text) => return,
            Ok(line) => seen.push(line),
            Err(error) => panic!("no line with `{text}` ({error}) after:\n{}", seen.join("\n")),
        }
    }
}

/// Waits until this holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Replaces what differs from machine to machine.
pub(crate) fn tidy(job: &Job, text: &str) -> String {
    let fixtures = fixture("");
    text.replace(&job.path().display().to_string(), "[JOB]")
        .replace(&fixtures.display().to_string(), "[FIXTURES]/")
}
