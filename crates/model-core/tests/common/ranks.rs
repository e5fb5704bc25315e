//! Ranks of one model as threads, with channels between them.

use std::sync::mpsc::{Receiver, Sender, channel};

use model_core::{
    Batch, Exchange, LoadOptions, LostRank, ModelConfig, ModelPart, ModelRanks, Reduction, load_part,
};
use model_spec::{ExpertSharing, ShardPlace};
use nemo_format::TensorSource;

use super::rows;

/// What one rank has of the channels: to and from each rank, in their order.
struct Channels {
    tensor_ranks: Vec<usize>,
    mine: usize,
    num_tensor_ranks: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl ModelRanks for Channels {
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, LostRank> {
        for &rank in self.tensor_ranks.iter().filter(|&&rank| rank != self.mine) {
            self.to[rank].send(mine.to_vec()).unwrap();
        }
        let of = |&rank: &usize| {
            if rank == self.mine { mine.to_vec() } else { self.from[rank].recv().unwrap() }
        };
        Ok(self.tensor_ranks.iter().map(of).collect())
    }

    fn send_to_next_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
        self.to[self.mine + self.num_tensor_ranks].send(bytes.to_vec()).unwrap();
        Ok(())
    }

    fn receive_from_previous_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        Ok(self.from[self.mine - self.num_tensor_ranks].recv().unwrap())
    }

    fn send_to_previous_stage(&mut self, _: &[u8]) -> Result<(), LostRank> {
        unreachable!("only GPUs ask for ways to the stage before")
    }

    fn receive_from_next_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        unreachable!("only GPUs are asked for ways by the next stage")
    }
}

/// The ranks of a model, tensor rank first.
fn channels(tensor: usize, pipeline: usize) -> Vec<Channels> {
    let num_ranks = tensor * pipeline;
    let mut to: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
    for of_sender in &mut to {
        for of_receiver in &mut from {
            let (sender, receiver) = channel();
            of_sender.push(sender);
            of_receiver.push(receiver);
        }
    }
    let ends = to.into_iter().zip(from).enumerate();
    ends.map(|(mine, (to, from))| {
        let first = mine / tensor * tensor;
        Channels { tensor_ranks: (first..first + tensor).collect(), mine, num_tensor_ranks: tensor, to, from }
    })
    .collect()
}

/// How many ranks, and what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) tensor: usize,
    pub(crate) pipeline: usize,
    pub(crate) experts: ExpertSharing,
}

impl From<(usize, usize)> for Layout {
    fn from((tensor, pipeline): (usize, usize)) -> Self {
        Self { tensor, pipeline, experts: ExpertSharing::Widths }
    }
}

/// The logits of some steps, as the first rank of the last stage has them; all ranks of that stage have the same.
pub(crate) fn logits(
    config: &ModelConfig,
    source: &dyn TensorSource,
    options: LoadOptions,
    layout: impl Into<Layout>,
    reduction: Reduction,
) -> Vec<Vec<u32>> {
    let Layout { tensor, pipeline, experts } = layout.into();
    let stages = config.spec_of(source).stages(pipeline, &options.numerics).unwrap();
    let stages = &stages;
    let of_ranks: Vec<Vec<Vec<u32>>> = std::thread::scope(|scope| {
        let started: Vec<_> = channels(tensor, pipeline)
            .into_iter()
            .map(|ranks| {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let (stage, tp_rank) = (ranks.mine / tensor, ranks.mine % tensor);
                    let layers = stages[stage].clone();
                    let (tp_rank, tp_size) = (tp_rank as u32, tensor as u32);
                    let place = ShardPlace { tp_rank, tp_size, experts, layers };
                    let ranks: Option<Box<dyn ModelRanks>> =
                        if tensor * pipeline > 1 { Some(Box::new(ranks)) } else { None };
                    let part = ModelPart { place, reduction, ranks, exchange: Exchange::Auto };
                    steps(&mut *load_part(config.clone(), source, options, part).unwrap())
                })
            })
            .collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let last_stage = &of_ranks[tensor * (pipeline - 1)..];
    assert!(last_stage.iter().all(|rank| *rank == last_stage[0]));
    assert!(of_ranks[..tensor * (pipeline - 1)].iter().all(Vec::is_empty));
    last_stage[0].clone()
}

/// Two prompts and some tokens behind them: the bits of their logits.
fn steps(model: &mut dyn model_core::CausalLm) -> Vec<Vec<u32>> {
    let mut cache = model.new_cache(8).unwrap();
    let prompts: [Vec<u32>; 2] =
        [(0..11).map(|idx| idx * 7 % 50).collect(), (0..5).map(|idx| 49 - idx).collect()];
    let tables = [[3, 5], [1, 0]];
    let mut seen = Vec::new();
    let mut run = |batch: &Batch| {
        let logits = model.forward(batch, &mut cache).unwrap();
        if logits.size()[1] == 0 {
            return;
        }
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
        seen.extend(rows(&logits).into_iter().map(bits).collect::<Vec<Vec<u32>>>());
    };
    let mut batch = Batch::default();
    for (prompt, table) in prompts.iter().zip(&tables) {
        batch.push(prompt, 0, 2, table);
    }
    run(&batch);
    for step in 0..3_u32 {
        let mut batch = Batch::default();
        for (prompt, table) in prompts.iter().zip(&tables) {
            batch.push(&[step * 13 + 2], prompt.len() as u32 + step, 1, table);
        }
        run(&batch);
    }
    seen
}
