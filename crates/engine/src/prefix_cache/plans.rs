//! Which beginnings of prompts are planned for later prompts: what the input is known to hold beyond what is queued.
//!
//! Pure. Of prompts that are planned together ([`PlannedPrefix`]) nobody says how much they have in common: that is what
//! those have in common that came so far, and of the first of them all of it. A plan ends with the last of them, or when
//! so many others came that they must have gone to another engine.

use std::collections::{BTreeSet, HashMap};

use super::NodeId;
use crate::PlannedPrefix;

#[derive(Debug)]
struct Plan {
    path: Vec<NodeId>,
    until: u64,
}

/// All plans.
#[derive(Debug, Default)]
pub(super) struct PrefixPlans {
    plans: HashMap<u32, Plan>,
    /// Ends of plans and the plans, the next end first.
    ends: BTreeSet<(u64, u32)>,
    num_entered: u64,
}

/// Pieces that a plan begins to want, and those of plans that are over or follow others.
#[derive(Debug, Default)]
pub(super) struct PlanChange {
    pub(super) begun: Vec<NodeId>,
    pub(super) ended: Vec<Vec<NodeId>>,
}

impl PrefixPlans {
    /// A prompt comes, with what is planned of it; its pieces are `path`.
    pub(super) fn enter(&mut self, planned: Option<PlannedPrefix>, path: &[NodeId]) -> PlanChange {
        self.num_entered += 1;
        let mut change = PlanChange::default();
        while let Some(&(until, id)) = self.ends.first()
            && until < self.num_entered
        {
            change.ended.extend(self.remove(id));
        }
        let Some(PlannedPrefix { id, num_later, within }) = planned else { return change };
        let before = self.remove(id);
        if num_later > 0 {
            let num_common = before.as_ref().map_or(path.len(), |before| {
                before.iter().zip(path).take_while(|(before, now)| before == now).count()
            });
            change.begun = path[..num_common].to_vec();
            let until = self.num_entered + u64::from(within);
            self.ends.insert((until, id));
            self.plans.insert(id, Plan { path: change.begun.clone(), until });
        }
        change.ended.extend(before);
        change
    }

    fn remove(&mut self, id: u32) -> Option<Vec<NodeId>> {
        let Plan { path, until } = self.plans.remove(&id)?;
        self.ends.remove(&(until, id));
        Some(path)
    }
}
