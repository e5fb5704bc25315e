//! How the ranks of a job are arranged: which of them together hold one model, a replica, and which replica a rank is in.
//!
//! The order is Megatron's default, `tp-cp-ep-dp-pp` (`initialize_model_parallel` in `megatron/core/parallel_state.py` of
//! Megatron-LM): of neighbouring ranks the tensor rank differs first, then the data rank, and the pipeline rank last,
//! `rank = tensor_rank + tensor * (data_rank + data * pipeline_rank)`. A replica's ranks therefore lie next to each
//! other only where it has one pipeline stage. Context parallelism does not exist here, and expert-parallel ranks are the
//! tensor-parallel ones.
//!
//! Samples are leased to replicas, and a replica is represented by the rank that comes first in its tensor group and its
//! pipeline.

use crate::exit::Failure;

/// A rank's global number.
pub(crate) type Rank = u32;

/// A replica's number: the data-parallel rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Replica(pub(crate) u32);

impl Replica {
    /// For tables that have an entry for each replica.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coordinates {
    pub(crate) replica: Replica,
    pub(crate) pipeline_rank: u32,
    pub(crate) tensor_rank: u32,
}

/// The sizes of the job; each is at least 1, and their product is the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    data: u32,
    pipeline: u32,
    tensor: u32,
}

impl Topology {
    /// # Errors
    /// When a size is 0, or there would be more ranks than a number of 32 bits counts.
    pub(crate) fn new(data: u32, pipeline: u32, tensor: u32) -> Result<Self, Failure> {
        let num_ranks = data.checked_mul(pipeline).and_then(|ranks| ranks.checked_mul(tensor));
        match num_ranks {
            Some(1..) => Ok(Self { data, pipeline, tensor }),
            _ => Err(Failure::usage(format!(
                "there can be no job of {data} x {pipeline} x {tensor} ranks (data x pipeline x tensor): each number must \
                 be at least 1, and their product at most {}",
                u32::MAX
            ))),
        }
    }

    /// `num_ranks` replicas of one rank each.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn data_parallel(num_ranks: u32) -> Result<Self, Failure> {
        Self::new(num_ranks, 1, 1)
    }

    /// Data, pipeline and tensor size.
    pub(crate) fn sizes(self) -> [u32; 3] {
        [self.data, self.pipeline, self.tensor]
    }

    /// All ranks.
    pub(crate) fn num_ranks(self) -> u32 {
        self.data * self.pipeline * self.tensor
    }

    /// The data-parallel size.
    pub(crate) fn num_replicas(self) -> u32 {
        self.data
    }

    /// All replicas, in order.
    pub(crate) fn replicas(self) -> impl Iterator<Item = Replica> {
        (0..self.data).map(Replica)
    }

    /// Where a rank is; `None` past the last one.
    pub(crate) fn coordinates(self, rank: Rank) -> Option<Coordinates> {
        let (rest, tensor_rank) = (rank / self.tensor, rank % self.tensor);
        let (pipeline_rank, replica) = (rest / self.data, Replica(rest % self.data));
        (pipeline_rank < self.pipeline).then_some(Coordinates { replica, pipeline_rank, tensor_rank })
    }

    /// The rank at a place; `None` where there is none.
    pub(crate) fn rank(self, at: Coordinates) -> Option<Rank> {
        let Coordinates { replica: Replica(replica), pipeline_rank, tensor_rank } = at;
        let exists = replica < self.data && pipeline_rank < self.pipeline && tensor_rank < self.tensor;
        exists.then(|| tensor_rank + self.tensor * (replica + self.data * pipeline_rank))
    }

    /// The rank that samples for a replica are sent to; `None` where there is no such replica.
    pub(crate) fn leader(self, replica: Replica) -> Option<Rank> {
        self.rank(Coordinates { replica, pipeline_rank: 0, tensor_rank: 0 })
    }

    /// The replica that a rank leases samples for; `None` for all ranks but its leader.
    pub(crate) fn leases_for(self, rank: Rank) -> Option<Replica> {
        let Coordinates { replica, pipeline_rank, tensor_rank } = self.coordinates(rank)?;
        (pipeline_rank == 0 && tensor_rank == 0).then_some(replica)
    }
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} x {} ranks (data x pipeline x tensor)", self.data, self.pipeline, self.tensor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The ranks that agree in `group`, for each value of it.
    fn groups(topology: Topology, group: impl Fn(Coordinates) -> (u32, u32)) -> Vec<Vec<Rank>> {
        let mut groups = std::collections::BTreeMap::<_, Vec<Rank>>::new();
        for rank in 0..topology.num_ranks() {
            groups.entry(group(topology.coordinates(rank).unwrap())).or_default().push(rank);
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort();
        groups
    }

    /// The example in the documentation of Megatron's `initialize_model_parallel`.
    #[test]
    fn sixteen_gpus_are_grouped_as_megatron_does() {
        let topology = Topology::new(2, 4, 2).unwrap();
        let data = groups(topology, |at| (at.pipeline_rank, at.tensor_rank));
        assert_eq!(data, [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]);
        let tensor = groups(topology, |at| (at.pipeline_rank, at.replica.0));
        assert_eq!(tensor, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]);
        let pipeline = groups(topology, |at| (at.replica.0, at.tensor_rank));
        assert_eq!(pipeline, [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (data, pipeline, tensor) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1 << 16, 1 << 8, 1 << 8)] {
            assert!(Topology::new(data, pipeline, tensor).is_err(), "{data} {pipeline} {tensor}");
        }
        let error = Topology::data_parallel(0).unwrap_err().sentence();
        insta::assert_snapshot!(error, @"there can be no job of 0 x 1 x 1 ranks (data x pipeline x tensor): each number must be at least 1, and their product at most 4294967295");
    }

    fn topology() -> impl Strategy<Value = Topology> {
        (1_u32..9, 1_u32..9, 1_u32..9)
            .prop_map(|(data, pipeline, tensor)| Topology::new(data, pipeline, tensor).unwrap())
    }

    proptest! {
        #[test]
        fn ranks_and_places_are_one_to_one(topology in topology(), beyond in 0_u32..100) {
            for rank in 0..topology.num_ranks() {
                let at = topology.coordinates(rank).unwrap();
                prop_assert_eq!(topology.rank(at), Some(rank));
            }
            prop_assert_eq!(topology.coordinates(topology.num_ranks() + beyond), None);
            let past = Coordinates { replica: Replica(topology.data + beyond), pipeline_rank: 0, tensor_rank: 0 };
            prop_assert_eq!(topology.rank(past), None);
        }

        #[test]
        fn each_replica_has_one_leader(topology in topology()) {
            let leading: Vec<_> = (0..topology.num_ranks())
                .filter_map(|rank| topology.leases_for(rank).map(|replica| (replica, rank)))
                .collect();
            let leaders: Vec<_> = topology.replicas().map(|replica| (replica, topology.leader(replica).unwrap())).collect();
            prop_assert_eq!(leading.len(), topology.num_replicas() as usize);
            prop_assert_eq!(leading, leaders);
            // Rank 0 deals out, and computes as well.
            prop_assert_eq!(topology.leases_for(0), Some(Replica(0)));
        }

        #[test]
        fn data_parallel_ranks_are_replicas(num_ranks in 1_u32..1000) {
            let topology = Topology::data_parallel(num_ranks).unwrap();
            prop_assert_eq!((topology.num_ranks(), topology.num_replicas()), (num_ranks, num_ranks));
            prop_assert!((0..num_ranks).all(|rank| topology.leases_for(rank) == Some(Replica(rank))));
        }
    }
}
