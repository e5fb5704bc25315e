//! Models that several ranks compute together: what a rank's part is, and what it exchanges with the others.
//!
//! Tensor-parallel ranks share every layer's heads and MLP; pipeline stages have layers of their own. A sum over the
//! inputs of a layer that ranks share is taken in pieces ([`model_spec::reduction_pieces`]), whose sums are added in one
//! tree: the same for any number of ranks, one included. The order of everything else does not change when a layer is
//! shared, so neither do the bits.

use std::ops::Range;

use model_spec::{ModelSpec, ShardPlace};
use tch::{Kind, Tensor};
use torch_ext::view;

use crate::ModelError;
use crate::model_ranks::{Exchange, LostRank, ModelRanks, Reduction};

/// Numbers of a message between GPUs: 32 MiB. Each has two slots of them for each rank that shares its layers.
pub(crate) const SLOT_ELEMS: u64 = 8 << 20;

/// Room of a GPU for what the stage before sends it: `StageInbox::BYTES` of `cuda_kernels`, and some for its marks.
const STAGE_INBOX_BYTES: u64 = 33 << 20;

/// What decides how much a GPU sets aside for what ranks exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeParts {
    /// How many share its layers, itself included.
    pub tp_size: u32,
    /// How they sum.
    pub reduction: Reduction,
    /// Whether a pipeline stage is before its own.
    pub has_previous_stage: bool,
}

/// What a GPU sets aside for what ranks exchange.
pub fn exchange_bytes(parts: ExchangeParts) -> u64 {
    let of_sums = match parts.reduction {
        Reduction::Chain => 0,
        Reduction::Tree => 2 * u64::from(parts.tp_size) * SLOT_ELEMS * size_of::<f32>() as u64,
    };
    of_sums + if parts.has_previous_stage { STAGE_INBOX_BYTES } else { 0 }
}

/// The part of a model that a process computes.
pub struct ModelPart {
    /// Its heads, its part of the MLPs and its layers.
    pub place: ShardPlace,
    /// How sums over inputs are taken; in a tree where there are several tensor-parallel ranks.
    pub reduction: Reduction,
    /// The others; `None` where the part is the whole model.
    pub ranks: Option<Box<dyn ModelRanks>>,
    /// What GPUs exchange through.
    pub exchange: Exchange,
}

impl ModelPart {
    /// The whole model, with sums of this kind.
    pub fn whole(model: &ModelSpec, reduction: Reduction) -> Self {
        Self { place: ShardPlace::whole(model), reduction, ranks: None, exchange: Exchange::Auto }
    }
}

/// A table of rows of which each tensor-parallel rank has some.
#[derive(Clone, Debug)]
pub(crate) struct SharedTable {
    /// Of all ranks, in order; they follow each other.
    shares: Vec<Range<u64>>,
    tp_rank: usize,
}

impl SharedTable {
    /// A table of so many rows, as the rank at a place shares it.
    pub(crate) fn new(num_rows: u64, at: &ShardPlace) -> Self {
        let share = |tp_rank| ShardPlace { tp_rank, ..at.clone() }.share_of(num_rows);
        Self { shares: (0..at.tp_size).map(share).collect(), tp_rank: at.tp_rank as usize }
    }

    /// Where each rank's rows begin, and how many there are.
    #[cfg(feature = "cuda")]
    pub(crate) fn starts(&self) -> Vec<i64> {
        let starts = self.shares.iter().map(|share| share.start as i64);
        starts.chain(self.shares.last().map(|share| share.end as i64)).collect()
    }

    /// Where this rank's rows begin, and how many it has.
    #[cfg(feature = "cuda")]
    pub(crate) fn own(&self) -> (i64, i64) {
        let share = self.shares.get(self.tp_rank).cloned().unwrap_or_default();
        (share.start as i64, (share.end - share.start) as i64)
    }

    /// The rank that has a row.
    fn owner(&self, row: u32) -> usize {
        self.shares.partition_point(|share| share.end <= u64::from(row))
    }

    /// The rows of this rank's part, and row 0 for those that others have.
    pub(crate) fn local(&self, rows: &[u32]) -> Vec<u32> {
        let share = self.shares.get(self.tp_rank).cloned().unwrap_or_default();
        let local = |&row: &u32| if share.contains(&u64::from(row)) { row - share.start as u32 } else { 0 };
        rows.iter().map(local).collect()
    }
}

/// The other ranks, for backends whose tensors are in the host's memory.
#[derive(Default)]
pub(crate) struct HostRanks(pub(crate) Option<Box<dyn ModelRanks>>);

impl std::fmt::Debug for HostRanks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostRanks").field(&self.0.is_some()).finish()
    }
}

impl HostRanks {
    fn others(&mut self) -> Result<&mut dyn ModelRanks, ModelError> {
        match &mut self.0 {
            Some(ranks) => Ok(ranks.as_mut()),
            None => Err(LostRank("this rank has no way to the others of its model".to_owned()).into()),
        }
    }

    /// What every tensor-parallel rank has of a tensor, in their order: of one kind and number of rows.
    fn gather(&mut self, mine: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let mine = mine.f_contiguous()?;
        let parts = self.others()?.all_gather(view::bytes(&mine, "an exchanged tensor")?)?;
        let num_rows = mine.size().first().copied().unwrap_or(0);
        parts.iter().map(|part| tensor_of(part, num_rows, mine.kind())).collect()
    }

    /// Rows of which every tensor-parallel rank has so many, in their order; those of a row lie together.
    pub(crate) fn gather_rows(&mut self, mine: &Tensor, counts: &[i64]) -> Result<Vec<Tensor>, ModelError> {
        let mine = mine.f_contiguous()?;
        let parts = self.others()?.all_gather(view::bytes(&mine, "an exchanged tensor")?)?;
        let row_bytes =
            mine.size().iter().skip(1).product::<i64>() as usize * mine.kind().elt_size_in_bytes();
        if parts.len() != counts.len() {
            return Err(strange(&format!("{} parts", counts.len()), &format!("{}", parts.len())));
        }
        let rows = |(part, &count): (&Vec<u8>, &i64)| match part.len() == count as usize * row_bytes {
            true => tensor_of(part, count, mine.kind()),
            false => Err(strange(&format!("{count} rows"), &format!("{} bytes", part.len()))),
        };
        parts.iter().zip(counts).map(rows).collect()
    }

    /// The least of the numbers that the ranks have, those of the stages before and behind included; this rank's where it
    /// has no others.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only GPUs agree on something"))]
    pub(crate) fn least(
        &mut self,
        mine: u64,
        (has_previous, has_next): (bool, bool),
    ) -> Result<u64, ModelError> {
        let Some(others) = &mut self.0 else { return Ok(mine) };
        let number = |bytes: &[u8]| match bytes.try_into() {
            Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(strange("8 bytes", &format!("{}", bytes.len()))),
        };
        let mut least = mine;
        for bytes in others.all_gather(&mine.to_le_bytes())? {
            least = least.min(number(&bytes)?);
        }
        // From the first stage to the last, and back.
        if has_previous {
            least = least.min(number(&others.receive_from_previous_stage()?)?);
        }
        if has_next {
            others.send_to_next_stage(&least.to_le_bytes())?;
            least = least.min(number(&others.receive_from_next_stage()?)?);
        }
        if has_previous {
            others.send_to_previous_stage(&least.to_le_bytes())?;
        }
        Ok(least)
    }

    /// `residual + (the sum of all ranks' partial sums + bias)`, rounded once. `partial`: float32
    /// `[num_tokens, hidden_size]`.
    pub(crate) fn reduce_add(
        &mut self,
        residual: &Tensor,
        partial: Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, ModelError> {
        let mut sum = match self.0 {
            Some(_) => tree_sum(self.gather(&partial)?)?,
            None => partial,
        };
        if let Some(bias) = bias {
            sum = sum.f_add(bias)?;
        }
        Ok(residual.f_to_kind(Kind::Float)?.f_add(&sum)?.f_to_kind(residual.kind())?)
    }

    /// The columns of all ranks side by side.
    pub(crate) fn gather_columns(&mut self, mine: Tensor) -> Result<Tensor, ModelError> {
        match self.0 {
            Some(_) => Ok(Tensor::f_cat(&self.gather(&mine)?, 1)?),
            None => Ok(mine),
        }
    }

    /// Of each token the row of the rank that has it. `mine`: what [`SharedTable::local`] gave, `[num_tokens, hidden_size]`.
    pub(crate) fn select_owned(
        &mut self,
        mine: &Tensor,
        ids: &[u32],
        table: &SharedTable,
    ) -> Result<Tensor, ModelError> {
        let all = Tensor::f_cat(&self.gather(mine)?, 0)?;
        let num_tokens = ids.len() as i64;
        let row = |(&id, idx): (&u32, i64)| table.owner(id) as i64 * num_tokens + idx;
        let rows: Vec<i64> = ids.iter().zip(0..).map(row).collect();
        Ok(all.f_index_select(0, &Tensor::f_from_slice(&rows)?)?)
    }

    /// Hands the residual stream to the next stage.
    pub(crate) fn send_residual(&mut self, residual: &Tensor) -> Result<(), ModelError> {
        let residual = residual.f_contiguous()?;
        Ok(self.others()?.send_to_next_stage(view::bytes(&residual, "the residual stream")?)?)
    }

    /// The residual stream from the stage before, of this shape.
    pub(crate) fn receive_residual(&mut self, shape: [i64; 2], kind: Kind) -> Result<Tensor, ModelError> {
        let bytes = self.others()?.receive_from_previous_stage()?;
        let residual = tensor_of(&bytes, shape[0], kind)?;
        if residual.size() != shape {
            return Err(strange(&format!("{shape:?}"), &format!("{:?}", residual.size())));
        }
        Ok(residual)
    }
}

fn strange(expected: &str, actual: &str) -> ModelError {
    LostRank(format!(
        "another rank of the model sent {actual} where {expected} belongs: its program or its settings are not those of this rank"
    ))
    .into()
}

/// `[num_rows, as many as there are]`.
fn tensor_of(bytes: &[u8], num_rows: i64, kind: Kind) -> Result<Tensor, ModelError> {
    let num_elems = bytes.len() / kind.elt_size_in_bytes();
    let num_columns = num_elems as i64 / num_rows.max(1);
    if num_columns * num_rows * kind.elt_size_in_bytes() as i64 != bytes.len() as i64 {
        return Err(strange(&format!("{num_rows} rows"), &format!("{} bytes", bytes.len())));
    }
    Ok(Tensor::f_from_data_size(bytes, &[num_rows, num_columns], kind)?)
}

/// `((0 + 1) + (2 + 3)) + ...`: neighbours, then neighbours of those. A power of two of tensors.
pub(crate) fn tree_sum(mut sums: Vec<Tensor>) -> Result<Tensor, ModelError> {
    while sums.len() > 1 {
        let pairs = sums.chunks(2).map(|pair| match pair {
            [left, right] => left.f_add(right),
            alone => alone[0].f_mul_scalar(1),
        });
        sums = pairs.collect::<Result<_, _>>()?;
    }
    sums.pop().ok_or_else(|| strange("a partial sum", "nothing"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// To another stage and from it.
    type Both = (Sender<Vec<u8>>, Receiver<Vec<u8>>);

    /// A stage between two others.
    struct Stage {
        previous: Option<Both>,
        next: Option<Both>,
    }

    impl ModelRanks for Stage {
        fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, LostRank> {
            Ok(vec![mine.to_vec()])
        }

        fn send_to_next_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
            self.next.as_ref().unwrap().0.send(bytes.to_vec()).unwrap();
            Ok(())
        }

        fn receive_from_previous_stage(&mut self) -> Result<Vec<u8>, LostRank> {
            Ok(self.previous.as_ref().unwrap().1.recv().unwrap())
        }

        fn send_to_previous_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
            self.previous.as_ref().unwrap().0.send(bytes.to_vec()).unwrap();
            Ok(())
        }

        fn receive_from_next_stage(&mut self) -> Result<Vec<u8>, LostRank> {
            Ok(self.next.as_ref().unwrap().1.recv().unwrap())
        }
    }

    #[test]
    fn all_stages_agree_on_the_least() {
        assert_eq!(HostRanks::default().least(9, (false, false)).unwrap(), 9);
        for numbers in [[64, 8, 32], [8, 64, 32], [64, 32, 8], [0, 0, 7]] {
            let mut stages = numbers.map(|_| Stage { previous: None, next: None });
            for idx in 1..numbers.len() {
                let ((to_next, from_previous), (to_previous, from_next)) = (channel(), channel());
                stages[idx - 1].next = Some((to_next, from_next));
                stages[idx].previous = Some((to_previous, from_previous));
            }
            let least = std::thread::scope(|scope| {
                let each = stages.into_iter().zip(numbers).map(|(stage, mine)| {
                    let beside = (stage.previous.is_some(), stage.next.is_some());
                    let mut ranks = HostRanks(Some(Box::new(stage)));
                    scope.spawn(move || ranks.least(mine, beside).unwrap())
                });
                let each: Vec<_> = each.collect();
                each.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(least, [*numbers.iter().min().unwrap(); 3]);
        }
    }

    #[test]
    fn sums_are_taken_in_one_order() {
        let of = |values: &[f32]| {
            tree_sum(values.iter().map(|&value| Tensor::from_slice(&[value])).collect())
                .unwrap()
                .double_value(&[0]) as f32
        };
        let values = [1e8_f32, 1.0, -1e8, 1.0, 3.0, 1e-3, 7.0, -5.0];
        let [a, b, c, d, e, f, g, h] = values;
        assert_eq!(of(&values), ((a + b) + (c + d)) + ((e + f) + (g + h)));
        // What ranks have summed is a subtree.
        assert_eq!(of(&[of(&values[..4]), of(&values[4..])]), of(&values));
        assert_eq!(
            of(&[of(&values[..2]), of(&values[2..4]), of(&values[4..6]), of(&values[6..])]),
            of(&values)
        );
        assert_eq!(of(&[2.5]), 2.5);
    }
}
