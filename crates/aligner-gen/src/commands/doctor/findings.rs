//! What `aligner-gen doctor` found, as text and as JSON, and what follows from it.

use std::path::PathBuf;

use cpu_kernels::Isa;
use serde_json::{Value, json};

use crate::table::human_bytes;

/// Below this many bytes the smallest models do not load.
const LITTLE_MEMORY: u64 = 2_000_000_000;

/// All that is known of the machine.
pub(super) struct Findings {
    pub(super) version: &'static str,
    /// Whether this build can use GPUs.
    pub(super) has_cuda: bool,
    pub(super) processor: Processor,
    pub(super) memory: Memory,
    pub(super) libtorch: Libtorch,
    /// Of the NVIDIA driver that is loaded.
    pub(super) driver_release: Option<String>,
    /// `None` in a build for the CPU.
    pub(super) gpus: Option<Gpus>,
    /// Whose variables of ranks are set.
    pub(super) launcher: Option<&'static str>,
    /// OMP_NUM_THREADS.
    pub(super) omp_threads: Option<String>,
}

pub(super) struct Processor {
    pub(super) model: Option<String>,
    /// Of the machine.
    pub(super) num_cores: usize,
    /// What affinity and control groups leave of them.
    pub(super) num_usable: usize,
    pub(super) isa: Isa,
}

pub(super) struct Memory {
    pub(super) total_bytes: Option<u64>,
    pub(super) available_bytes: Option<u64>,
}

pub(super) struct Libtorch {
    pub(super) version: Option<String>,
    pub(super) folder: Option<PathBuf>,
}

pub(super) struct Gpus {
    pub(super) devices: Result<GpuPart, String>,
    /// The version of the compiler of kernels.
    pub(super) nvrtc: Result<String, String>,
    /// Where compiled kernels are kept.
    pub(super) kernel_cache: Option<PathBuf>,
}

/// What the driver says.
pub(super) struct GpuPart {
    /// The newest CUDA that the driver runs.
    pub(super) driver_cuda: String,
    pub(super) gpus: Vec<Result<Gpu, String>>,
}

pub(super) struct Gpu {
    pub(super) model: String,
    pub(super) arch: String,
    pub(super) total_bytes: u64,
    pub(super) free_bytes: u64,
}

impl Findings {
    /// A line for each finding, then what to do.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![
            ("aligner-gen", format!("{}, {}", self.version, self.build())),
            ("processor", self.processor.line()),
            ("vectors", vectors(self.processor.isa).to_owned()),
            ("memory", self.memory.line()),
            ("libtorch", self.libtorch.line()),
        ];
        lines.extend(self.gpu_lines());
        lines.push(("launcher", self.launcher.unwrap_or("none").to_owned()));
        lines.push(("will use", self.choice()));
        lines.extend(self.advice().into_iter().map(|advice| ("to do", advice)));
        lines.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let part = self.gpus.as_ref().and_then(|gpus| gpus.devices.as_ref().ok());
        let gpus: Vec<Value> = part.iter().flat_map(|part| &part.gpus).map(gpu_json).collect();
        let problem = self.gpus.as_ref().and_then(|gpus| gpus.devices.as_ref().err());
        let nvrtc = self.gpus.as_ref().map(|gpus| match &gpus.nvrtc {
            Ok(version) => json!({"version": version}),
            Err(error) => json!({"error": error}),
        });
        json!({
            "version": self.version,
            "feature_cuda": self.has_cuda,
            "processor": self.processor.model,
            "num_cores": self.processor.num_cores,
            "num_usable_cores": self.processor.num_usable,
            "vectors": vectors(self.processor.isa),
            "memory_bytes": self.memory.total_bytes,
            "available_bytes": self.memory.available_bytes,
            "libtorch": self.libtorch.version,
            "libtorch_folder": self.libtorch.folder,
            "driver": self.driver_release,
            "driver_cuda": part.map(|part| &part.driver_cuda),
            "gpus": gpus,
            "gpu_error": problem,
            "nvrtc": nvrtc,
            "kernel_cache": self.gpus.as_ref().and_then(|gpus| gpus.kernel_cache.as_ref()),
            "launcher": self.launcher,
            "will_use": self.choice(),
            "to_do": self.advice(),
        })
    }

    fn build(&self) -> &'static str {
        if self.has_cuda { "built for GPUs and the CPU" } else { "built for the CPU" }
    }

    fn gpu_lines(&self) -> Vec<(&'static str, String)> {
        let release = self.driver_release.as_deref().unwrap_or("not loaded");
        let Some(gpus) = &self.gpus else { return vec![("driver", release.to_owned())] };
        let mut lines = Vec::new();
        match &gpus.devices {
            Err(problem) => lines.push(("driver", format!("{release}: {problem}"))),
            Ok(part) => {
                lines.push(("driver", format!("{release}, for CUDA up to {}", part.driver_cuda)));
                if part.gpus.is_empty() {
                    lines.push(("GPU", "none".to_owned()));
                }
                lines.extend(part.gpus.iter().map(|gpu| ("GPU", gpu_line(gpu))));
            }
        }
        let compiler = match &gpus.nvrtc {
            Ok(version) => format!("NVRTC {version}"),
            Err(problem) => problem.clone(),
        };
        let kept = match &gpus.kernel_cache {
            Some(folder) => format!("kept in {}", folder.display()),
            None => "compiled at every start".to_owned(),
        };
        lines.push(("kernels", format!("{compiler}; {kept}")));
        lines
    }

    fn usable_gpus(&self) -> usize {
        let part = self.gpus.as_ref().and_then(|gpus| gpus.devices.as_ref().ok());
        part.map_or(0, |part| part.gpus.iter().filter(|gpu| gpu.is_ok()).count())
    }

    /// What a job with the default `trainer.accelerator=gpu` runs on.
    fn choice(&self) -> String {
        match self.usable_gpus() {
            0 => {
                let num_threads = self.omp_threads.clone().unwrap_or(self.processor.num_usable.to_string());
                format!("the CPU: {num_threads} threads, {}", vectors(self.processor.isa))
            }
            1 => "the GPU (`trainer.devices=1`)".to_owned(),
            count => format!("as many of {count} GPUs as `trainer.devices` says"),
        }
    }

    /// What could be better, most important first.
    pub(super) fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        match &self.gpus {
            None if self.driver_release.is_some() => advice.push(
                "there is an NVIDIA driver, and this build is for the CPU: install torch with CUDA beside the wheel, or \
                 build with `--features cuda`"
                    .to_owned(),
            ),
            Some(Gpus { devices: Err(problem), .. }) if self.driver_release.is_some() => advice.push(format!(
                "the NVIDIA driver is loaded and cannot be used ({problem}): in a container, start it with its GPUs \
                 (`--gpus all`, `--nv`); CUDA 13 needs a driver of 580 or newer"
            )),
            Some(Gpus { nvrtc: Err(_), .. }) if self.usable_gpus() > 0 => advice.push(
                "NVRTC is missing, which compiles the kernels: `pip install nvidia-cuda-nvrtc`, or `cargo xtask setup \
                 --cuda`"
                    .to_owned(),
            ),
            Some(Gpus { kernel_cache: None, .. }) if self.usable_gpus() > 0 => advice.push(
                "the folder of compiled kernels cannot be written to: set XDG_CACHE_HOME, and a start takes seconds less"
                    .to_owned(),
            ),
            _ => {}
        }
        if self.usable_gpus() > 0 {
            return advice;
        }
        if self.processor.isa == Isa::Portable {
            advice.push("this processor has no AVX2: generating on it is slow".to_owned());
        }
        if self.processor.num_usable < self.processor.num_cores {
            advice.push(format!(
                "{} of {} cores may be used: affinity or a control group (a container's limit) takes the others",
                self.processor.num_usable, self.processor.num_cores
            ));
        }
        if self.memory.available_bytes.is_some_and(|bytes| bytes < LITTLE_MEMORY) {
            advice
                .push("little memory is free: models of a billion parameters need 2 GB and more".to_owned());
        }
        advice
    }
}

impl Processor {
    fn line(&self) -> String {
        let model = self.model.as_deref().unwrap_or("unknown");
        format!("{model}, {} of {} cores", self.num_usable, self.num_cores)
    }
}

impl Memory {
    fn line(&self) -> String {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), human_bytes);
        format!("{}, {} of it free", bytes(self.total_bytes), bytes(self.available_bytes))
    }
}

impl Libtorch {
    fn line(&self) -> String {
        let version = self.version.as_deref().unwrap_or("of unknown version");
        match &self.folder {
            Some(folder) => format!("{version} in {}", folder.display()),
            None => version.to_owned(),
        }
    }
}

fn gpu_line(gpu: &Result<Gpu, String>) -> String {
    match gpu {
        Ok(Gpu { model, arch, total_bytes, free_bytes }) => {
            format!("{model}, {arch}, {}, {} of it free", human_bytes(*total_bytes), human_bytes(*free_bytes))
        }
        Err(problem) => problem.clone(),
    }
}

fn gpu_json(gpu: &Result<Gpu, String>) -> Value {
    match gpu {
        Ok(Gpu { model, arch, total_bytes, free_bytes }) => {
            json!({"model": model, "arch": arch, "memory_bytes": total_bytes, "free_bytes": free_bytes})
        }
        Err(problem) => json!({"error": problem}),
    }
}

/// The vector units that the CPU's kernels use.
fn vectors(isa: Isa) -> &'static str {
    match isa {
        Isa::Portable => "none that are used (no AVX2)",
        Isa::Neon => "NEON",
        Isa::Avx2 => "AVX2",
        Isa::Avx512 => "AVX-512",
        Isa::Avx512Bf16 => "AVX-512 with bfloat16",
        Isa::Amx => "AVX-512 with bfloat16, and AMX",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laptop() -> Findings {
        Findings {
            version: "0.1.0",
            has_cuda: false,
            processor: Processor {
                model: Some("A Processor".to_owned()),
                num_cores: 8,
                num_usable: 8,
                isa: Isa::Avx2,
            },
            memory: Memory { total_bytes: Some(16_000_000_000), available_bytes: Some(9_500_000_000) },
            libtorch: Libtorch {
                version: Some("2.11.0+cpu".to_owned()),
                folder: Some("/t/torch/lib".into()),
            },
            driver_release: None,
            gpus: None,
            launcher: None,
            omp_threads: None,
        }
    }

    fn server() -> Findings {
        let gpu = Gpu {
            model: "NVIDIA H200".to_owned(),
            arch: "sm_90".to_owned(),
            total_bytes: 150_000_000_000,
            free_bytes: 149_000_000_000,
        };
        let part = GpuPart { driver_cuda: "13.0".to_owned(), gpus: vec![Ok(gpu)] };
        Findings {
            has_cuda: true,
            driver_release: Some("580.82.07".to_owned()),
            gpus: Some(Gpus {
                devices: Ok(part),
                nvrtc: Ok("13.0".to_owned()),
                kernel_cache: Some("/home/u/.cache/aligner-gen/kernels".into()),
            }),
            launcher: Some("Slurm"),
            ..laptop()
        }
    }

    #[test]
    fn a_laptop_has_nothing_to_do() {
        insta::assert_snapshot!(laptop().text());
    }

    #[test]
    fn a_gpu_is_used() {
        insta::assert_snapshot!(server().text());
        let json = server().json();
        assert_eq!(json["gpus"][0]["arch"], "sm_90");
        assert_eq!(json["to_do"], json!([]));
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let with_driver = Findings { driver_release: Some("535.1".to_owned()), ..laptop() };
        let no_nvrtc = Findings {
            gpus: server().gpus.map(|gpus| Gpus { nvrtc: Err("cannot open it".to_owned()), ..gpus }),
            ..server()
        };
        let hidden = Findings {
            gpus: server()
                .gpus
                .map(|gpus| Gpus { devices: Err("no CUDA-capable device".to_owned()), ..gpus }),
            ..server()
        };
        let limited = Findings {
            processor: Processor { num_usable: 2, isa: Isa::Portable, ..laptop().processor },
            memory: Memory { available_bytes: Some(1_000_000_000), ..laptop().memory },
            ..laptop()
        };
        let all = [with_driver, no_nvrtc, hidden, limited].map(|findings| findings.advice().join("\n"));
        insta::assert_snapshot!(all.join("\n"));
    }
}
