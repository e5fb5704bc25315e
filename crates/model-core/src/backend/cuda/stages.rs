//! What a GPU hands to that of the next pipeline stage.
//!
//! A recorded decode step reads the residual stream from one place and leaves it in another; what brings it there and takes
//! it away is enqueued around the replay, so that it may wait.

use std::sync::Arc;

use cuda_kernels::{KernelConfig, ScoreKind, StageInbox, StageLink};
use cuda_runtime::{SharedIn, Watched, kernel_cache};
use tch::{Kind, Tensor};

use super::loader::Joining;
use super::{CudaState, NO_ROOM};
use crate::ModelError;
use crate::kinds::TensorFormat;
use crate::model_ranks::{Exchange, LostRank, ModelRanks, RankCheck};

const NO_STAGE: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "the pipeline stages were not joined" };
const HOST: &str = "the GPUs of two pipeline stages do not reach each other's memory: the residual stream goes through the host's, \
                    which is slower";
const MESSAGES: &str =
    "two pipeline stages share no memory: the residual stream goes through their connection";
/// What two stages say of a way.
const OPENED: &[u8] = b"opened";
const NOT_OPENED: &[u8] = b"not opened";

/// A way of the residual stream.
#[derive(Debug)]
enum Way {
    Memory(Box<StageLink>, SharedIn),
    /// The connection of the processes, after a copy to the host.
    Messages,
}

/// The stages before and behind this rank's.
#[derive(Debug, Default)]
pub(super) struct DeviceStages {
    hidden_size: i64,
    previous: Option<Way>,
    next: Option<Way>,
    /// Where recorded decode steps find the stream of the stage before, `[max_rows, hidden_size]`.
    incoming: Option<Tensor>,
    /// Where they leave it for the next one.
    outgoing: Option<Tensor>,
}

impl DeviceStages {
    /// Finds the ways to the stages before and behind.
    pub(super) fn join(
        state: &CudaState,
        others: Option<&mut (dyn ModelRanks + 'static)>,
        joining: &Joining<'_>,
    ) -> Result<Self, ModelError> {
        let has_previous = !joining.place.is_first_stage();
        let has_next = joining.place.layers.end < joining.num_layers;
        let mut stages = Self { hidden_size: joining.hidden_size as i64, ..Self::default() };
        let Some(others) = others.filter(|_| has_previous || has_next) else {
            return if has_previous || has_next { Err(NO_STAGE) } else { Ok(stages) };
        };
        let mut places = match joining.exchange {
            Exchange::Auto => vec![SharedIn::Gpu, SharedIn::Host],
            Exchange::HostMemory => vec![SharedIn::Host],
            Exchange::Messages => Vec::new(),
        }
        .into_iter();
        // Both ends try the same places in turn, the receiving one first, so nobody waits for who waits for it.
        if has_previous {
            let mut way = Way::Messages;
            for place in places.clone() {
                let inbox = StageInbox::new(&state.device, place);
                let offer = inbox.as_ref().map_err(|_| ()).and_then(|inbox| inbox.handle().map_err(|_| ()));
                let offer = offer.map(|handle| [machine()?.as_bytes(), b"\n", &handle].concat().into());
                let offer: Option<Vec<u8>> = offer.ok().flatten();
                others.send_to_previous_stage(offer.as_deref().unwrap_or_default())?;
                let is_open = others.receive_from_previous_stage()? == OPENED;
                if let (true, Ok(inbox)) = (is_open, inbox) {
                    let cache = kernel_cache();
                    let link =
                        StageLink::receiving(&state.device, &config(state), cache.as_deref(), inbox, 0)?;
                    way = Way::Memory(Box::new(link), place);
                    break;
                }
            }
            stages.previous = Some(way);
        }
        if has_next {
            let way = places.find_map(|place| match find_way(state, others, place) {
                Ok(None) => None,
                Ok(Some(link)) => Some(Ok(Way::Memory(Box::new(link), place))),
                Err(error) => Some(Err(error)),
            });
            stages.next = Some(way.unwrap_or(Ok(Way::Messages))?);
        }
        Ok(stages)
    }

    /// Whether there is one before, and one behind.
    pub(super) fn neighbours(&self) -> (bool, bool) {
        (self.previous.is_some(), self.next.is_some())
    }

    /// Makes room for decode steps of up to so many rows.
    pub(super) fn reserve_decode(
        &mut self,
        max_rows: usize,
        (kind, device): (Kind, tch::Device),
    ) -> Result<(), ModelError> {
        let rows = || Tensor::f_zeros([max_rows as i64, self.hidden_size], (kind, device));
        let incoming = self.previous.as_ref().map(|_| rows()).transpose()?;
        self.outgoing = self.next.as_ref().map(|_| rows()).transpose()?;
        self.incoming = incoming;
        Ok(())
    }

    /// Where the stream of the stage before belongs, where there is one.
    pub(super) fn incoming(&self, num_rows: usize) -> Result<Option<Tensor>, ModelError> {
        first_rows(self.previous.is_some(), self.incoming.as_ref(), num_rows as i64)
    }

    /// Where the stream for the next stage is, where there is one.
    pub(super) fn outgoing(&self, num_rows: usize) -> Result<Option<Tensor>, ModelError> {
        first_rows(self.next.is_some(), self.outgoing.as_ref(), num_rows as i64)
    }

    /// A copy of what came, for a step that may be recorded: the layers change it in place, and a step that is recorded runs
    /// once before.
    pub(super) fn take_incoming(&self, shape: [i64; 2]) -> Result<Tensor, ModelError> {
        let rows = self.incoming(shape[0] as usize)?.ok_or(NO_STAGE)?;
        Ok(rows.f_detach_copy()?)
    }

    /// Leaves the stream of such a step for the next stage.
    pub(super) fn keep_outgoing(&self, residual: &Tensor) -> Result<(), ModelError> {
        let mut rows = self.outgoing(residual.size2()?.0 as usize)?.ok_or(NO_STAGE)?;
        Ok(rows.f_copy_(residual)?)
    }

    /// What tells whether the other ends came.
    pub(super) fn checks(&self) -> impl Iterator<Item = RankCheck> {
        let of = |way: &Option<Way>, which: &'static str| match way {
            Some(Way::Memory(link, _)) => Some(check_of(link.lost(), which)),
            Some(Way::Messages) | None => None,
        };
        [of(&self.previous, "the one before"), of(&self.next, "the next one")].into_iter().flatten()
    }

    /// A sentence for each way that is not from GPU to GPU.
    pub(super) fn detours(&self) -> impl Iterator<Item = &'static str> {
        let of = |way: &Way| match way {
            Way::Memory(_, SharedIn::Gpu) => None,
            Way::Memory(_, SharedIn::Host) => Some(HOST),
            Way::Messages => Some(MESSAGES),
        };
        self.next.iter().filter_map(of)
    }
}

fn first_rows(is_wanted: bool, rows: Option<&Tensor>, num_rows: i64) -> Result<Option<Tensor>, ModelError> {
    match (is_wanted, rows) {
        (false, _) => Ok(None),
        (true, Some(rows)) => Ok(Some(rows.f_narrow(0, 0, num_rows)?)),
        (true, None) => Err(NO_ROOM),
    }
}

/// The way to the next stage through memory in such a place. `None` where there is none.
fn find_way(
    state: &CudaState,
    others: &mut (dyn ModelRanks + 'static),
    place: SharedIn,
) -> Result<Option<StageLink>, ModelError> {
    let offer = others.receive_from_next_stage()?;
    let machine = machine();
    let handle = machine
        .as_ref()
        .and_then(|machine| offer.strip_prefix(machine.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n")));
    let link = handle.map(|handle| {
        StageLink::sending(&state.device, &config(state), kernel_cache().as_deref(), handle, 1)
    });
    match link {
        Some(Ok(link)) => {
            others.send_to_next_stage(OPENED)?;
            Ok(Some(link))
        }
        // It is no failure yet: there are other ways.
        Some(Err(_)) | None => {
            let _ = place;
            others.send_to_next_stage(NOT_OPENED)?;
            Ok(None)
        }
    }
}

/// What no other machine has, and this one only until it is started again.
fn machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot.trim().to_owned()).filter(|boot| !boot.is_empty())
}

/// No kernel of these knows heads.
fn config(state: &CudaState) -> KernelConfig {
    KernelConfig {
        kind: state.numerics.compute.kind(),
        head_dim: 16,
        queries_per_group: 1,
        has_fp8_kv: false,
        scores: ScoreKind::default(),
    }
}

fn check_of(lost: Arc<Watched>, which: &'static str) -> RankCheck {
    Box::new(move || match lost.read() {
        0 => Ok(()),
        _ => Err(LostRank(format!(
            "the GPU of another pipeline stage, {which}, did not come with the residual stream within 30 s: its process has \
             ended or stands still"
        ))),
    })
}

impl CudaState {
    pub(super) fn send_to_next_stage(&mut self, residual: &Tensor) -> Result<(), ModelError> {
        match self.stages.next.as_ref().ok_or(NO_STAGE)? {
            Way::Memory(link, _) => {
                let residual = residual.f_contiguous()?;
                Ok(link.pass(&self.stream()?, self.numerics.compute.kind(), &residual)?)
            }
            Way::Messages => self.ranks.send_residual(&residual.f_to_device(tch::Device::Cpu)?),
        }
    }

    /// The stream of the stage before into `residual`, `[num_tokens, hidden_size]`.
    pub(super) fn receive_from_previous_stage(&mut self, residual: &Tensor) -> Result<(), ModelError> {
        let kind = self.numerics.compute.kind();
        match self.stages.previous.as_ref().ok_or(NO_STAGE)? {
            Way::Memory(link, _) => Ok(link.pass(&self.stream()?, kind, residual)?),
            Way::Messages => {
                let (num_rows, width) = residual.size2()?;
                let came = self.ranks.receive_residual([num_rows, width], kind)?;
                Ok(residual.shallow_clone().f_copy_(&came)?)
            }
        }
    }
}
