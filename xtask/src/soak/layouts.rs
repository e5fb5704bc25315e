//! One hash for every layout of ranks, and for runs that are killed and go on with another one.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::sameness::{QUESTIONS, SAMPLING, Table, hash};
use super::{Runner, record};

const PRECISIONS: [&str; 2] = ["trainer.precision=bf16", "trainer.precision=32"];

/// What all runs have: the sums of the tree, and steps that every number of replicas divides.
const COMMON: [&str; 3] = [
    "trainer.generation.trt_llm.enable=true",
    "++model.generation.reduction=tree",
    "model.data.train_ds.drop_last=false",
];

/// Tensor-parallel, pipeline and data-parallel size.
#[derive(Clone, Copy)]
struct Layout {
    tensor: u32,
    pipeline: u32,
    data: u32,
}

impl Layout {
    /// Those of a model whose layers so many ranks may share.
    fn all(tensor_sizes: &[u32]) -> Vec<Self> {
        let sizes = tensor_sizes.iter().flat_map(|&tensor| [1, 2].map(|pipeline| (tensor, pipeline)));
        sizes.flat_map(|(tensor, pipeline)| [1, 2].map(|data| Self { tensor, pipeline, data })).collect()
    }

    fn name(self) -> String {
        format!("TP {} x PP {} x DP {}", self.tensor, self.pipeline, self.data)
    }

    fn overrides(self) -> [String; 3] {
        [
            format!("trainer.devices={}", self.tensor * self.pipeline * self.data),
            format!("model.tensor_model_parallel_size={}", self.tensor),
            format!("model.pipeline_model_parallel_size={}", self.pipeline),
        ]
    }
}

/// Prints the table; the result names what differs.
pub(super) fn run(runner: &Runner<'_>, kills: u64) -> Result<Vec<String>> {
    runner.write_data(&QUESTIONS.map(record).concat())?;
    let mut table = Table::new(runner.model.name);
    let layouts = Layout::all(runner.model.tensor_sizes);
    for (nth, precision) in PRECISIONS.into_iter().enumerate() {
        let output = |name: &str, layout: Layout| {
            let own = layout.overrides();
            let overrides: Vec<&str> = SAMPLING
                .iter()
                .chain(&COMMON)
                .copied()
                .chain([precision])
                .chain(own.iter().map(String::as_str))
                .collect();
            (format!("layouts-{nth}-{name}"), overrides.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let path = precision.trim_start_matches("trainer.precision=");
        let mut expect = None;
        let mut run_time = Duration::ZERO;
        for (idx, &layout) in layouts.iter().enumerate() {
            let (name, overrides) = output(&idx.to_string(), layout);
            let started = Instant::now();
            let found = hash(&runner.output(&name, &refs(&overrides))?);
            run_time = run_time.max(started.elapsed());
            let expect = expect.get_or_insert_with(|| found.clone());
            table.row(path, &layout.name(), &found, expect);
        }
        // Each start has the next layout; the last one finishes.
        let mut num_met = 0;
        for (kill, &layout) in (0..kills).zip(layouts.iter().cycle()) {
            let (name, overrides) = output("killed", layout);
            let mut child = runner.start(&name, &refs(&overrides))?;
            std::thread::sleep(run_time * u32::try_from(kill * kill * 7919 % 1000)? / 1000);
            num_met += u64::from(child.try_wait()?.is_none());
            child.kill()?;
            child.wait()?;
        }
        if let (Some(&last), Some(expect)) = (layouts.last(), &expect) {
            let (name, overrides) = output("killed", last);
            let found = hash(&runner.output(&name, &refs(&overrides))?);
            table.row(
                path,
                &format!("a layout after the other, killed {kills} times, {num_met} in its work"),
                &found,
                expect,
            );
        }
    }
    Ok(table.broken)
}

fn refs(overrides: &[String]) -> Vec<&str> {
    overrides.iter().map(String::as_str).collect()
}
