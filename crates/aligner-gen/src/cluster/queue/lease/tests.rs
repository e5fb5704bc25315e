use proptest::prelude::*;

use super::*;

const LIMITS: LeaseLimits = LeaseLimits {
    step_samples: 2,
    run_ahead_samples: 8,
    window_samples: 8,
    max_waiting_bytes: 1000,
    lease: Duration::from_secs(10),
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn table(num: usize, num_replicas: u32) -> LeaseTable<'static> {
    let mut table = LeaseTable::new(0..num, num_replicas, LIMITS);
    for replica in 0..num_replicas {
        table.join(Replica(replica), 4, at(0));
    }
    table
}

/// Of ten tokens.
fn size(num_bytes: usize) -> SampleSize {
    SampleSize { longest_tokens: 10, mean_tokens: 10, num_bytes }
}

fn grant(table: &mut LeaseTable<'_>, replica: u32, now: u64) -> Vec<usize> {
    table.grant(Replica(replica), at(now)).into_iter().map(|grant| grant.position).collect()
}

fn complete(table: &mut LeaseTable<'_>, replica: u32, position: usize, now: u64) -> Arrival {
    table.complete(Replica(replica), position, size(100), at(now))
}

#[test]
fn samples_come_in_order_and_within_the_window() {
    let mut table = table(100, 3);
    assert_eq!(grant(&mut table, 0, 0), [0, 1, 2, 3]);
    assert_eq!(grant(&mut table, 1, 0), [4, 5, 6, 7]);
    assert_eq!(grant(&mut table, 2, 0), Vec::<usize>::new());
    assert_eq!(complete(&mut table, 0, 1, 1), Arrival::First);
    assert_eq!(grant(&mut table, 0, 1), Vec::<usize>::new());
    assert_eq!(complete(&mut table, 0, 0, 1), Arrival::First);
    table.commit(2);
    assert_eq!(table.num_waiting_bytes(), 0);
    assert_eq!(grant(&mut table, 2, 1), [8, 9]);
}

/// A sample that is expected to be short waits for as many others as the window has and no longer.
#[test]
fn a_step_is_held_up_by_the_window_at_most() {
    let work_of = |position| Work { budget_tokens: if position == 0 { 1 } else { 100 }, ..Work::default() };
    let limits = LeaseLimits { run_ahead_samples: 1000, window_samples: 6, ..LIMITS };
    let mut table = LeaseTable::ordered(0..100, 1, limits, Box::new(work_of));
    table.join(Replica(0), 1, at(0));
    let mut given = Vec::new();
    while given.last() != Some(&0) {
        given.extend(grant(&mut table, 0, 1));
        let &position = given.last().unwrap();
        assert_eq!(complete(&mut table, 0, position, 1), Arrival::First);
    }
    assert_eq!(given, [1, 2, 3, 4, 5, 6, 0]);
}

#[test]
fn the_step_to_be_committed_is_never_held_back() {
    let mut table = table(100, 1);
    table.limits = LeaseLimits { step_samples: 6, run_ahead_samples: 6, ..LIMITS };
    assert_eq!(grant(&mut table, 0, 0), [0, 1, 2, 3]);
    assert_eq!(table.complete(Replica(0), 0, size(5000), at(1)), Arrival::First);
    assert_eq!(table.complete(Replica(0), 1, size(5000), at(1)), Arrival::First);
    assert_eq!(grant(&mut table, 0, 1), [4, 5]);
}

#[test]
fn what_waits_is_bounded_in_bytes() {
    let mut table = table(100, 1);
    table.limits.run_ahead_samples = 100;
    assert_eq!(grant(&mut table, 0, 0), [0, 1, 2, 3]);
    assert_eq!(table.complete(Replica(0), 3, size(1000), at(1)), Arrival::First);
    assert_eq!(grant(&mut table, 0, 1), Vec::<usize>::new());
    for position in 0..3 {
        complete(&mut table, 0, position, 1);
    }
    table.commit(4);
    assert_eq!(grant(&mut table, 0, 1).len(), 4);
}

#[test]
fn a_silent_replica_loses_its_leases_and_its_late_answers_are_dropped() {
    let mut table = table(100, 2);
    assert_eq!(grant(&mut table, 0, 0), [0, 1, 2, 3]);
    assert_eq!(grant(&mut table, 1, 0), [4, 5, 6, 7]);
    table.hear(Replica(0), at(9));
    assert_eq!(table.expire(at(10)), []);
    assert_eq!(table.expire(at(11)), [(Replica(1), 4)]);
    assert_eq!(table.expire(at(12)), []);
    assert_eq!(grant(&mut table, 1, 12), Vec::<usize>::new());
    for position in 0..3 {
        complete(&mut table, 0, position, 12);
    }
    assert_eq!(grant(&mut table, 0, 12), [4, 5, 6]);
    // The first answer counts, whoever gives it.
    assert!(table.hear(Replica(1), at(13)));
    assert_eq!(complete(&mut table, 1, 7, 13), Arrival::First);
    assert_eq!(complete(&mut table, 1, 4, 13), Arrival::First);
    assert_eq!(complete(&mut table, 0, 4, 14), Arrival::Duplicate);
    assert_eq!(complete(&mut table, 0, 5, 14), Arrival::First);
    assert_eq!(complete(&mut table, 1, 5, 15), Arrival::Duplicate);
}

#[test]
fn a_replica_that_leaves_gives_its_samples_to_others() {
    let mut table = table(6, 2);
    assert_eq!(grant(&mut table, 1, 0), [0, 1, 2]);
    table.leave(Replica(1));
    assert_eq!(grant(&mut table, 0, 0), [0, 1, 2, 3]);
    table.hear(Replica(1), at(1));
    assert_eq!(grant(&mut table, 1, 1), Vec::<usize>::new());
}

#[test]
fn the_last_samples_are_shared_out_by_speed() {
    let mut table = table(100, 2);
    table.limits = LeaseLimits { run_ahead_samples: 100, max_waiting_bytes: usize::MAX, ..LIMITS };
    // Replica 1 takes four times as long for the same tokens.
    for turn in 0..10 {
        for (replica, seconds) in [(0, 1), (1, 4)] {
            let start = turn * 4;
            for position in grant(&mut table, replica, start) {
                complete(&mut table, replica, position, start + seconds);
            }
        }
    }
    let left = table.num_unfinished();
    assert_eq!(left, 20);
    table.replicas.iter_mut().for_each(|state| state.capacity = 100);
    assert_eq!((grant(&mut table, 1, 50).len(), grant(&mut table, 0, 50).len()), (4, 16));
    // What the fast replica is done with, it does for the slow one.
    for position in 84..100 {
        complete(&mut table, 0, position, 51);
    }
    assert_eq!(grant(&mut table, 0, 51), [80, 81, 82, 83]);
    assert_eq!(grant(&mut table, 0, 51), Vec::<usize>::new());
    assert_eq!(complete(&mut table, 0, 80, 52), Arrival::First);
    assert_eq!(complete(&mut table, 1, 80, 52), Arrival::Duplicate);
}

/// What may happen to a table; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Grant(u32),
    Complete(u32, usize),
    Wait(u64),
    Hear(u32),
    Leave(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u32..4).prop_map(Event::Grant),
        8 => (0_u32..4, 0_usize..16).prop_map(|(replica, nth)| Event::Complete(replica, nth)),
        2 => (0_u64..6).prop_map(Event::Wait),
        4 => (0_u32..4).prop_map(Event::Hear),
        1 => (1_u32..4).prop_map(Event::Leave),
    ]
}

proptest! {
    #[test]
    fn every_sample_is_finished_once(
        num in 1_usize..60, start in 0_usize..5, step in 1_usize..7, capacity in 1_usize..9,
        run_ahead_samples in 7_usize..20, window_samples in 1_usize..30,
        lengths in prop::collection::vec((0_u32..100, prop::option::of(0_u32..3)), 65),
        events in prop::collection::vec(event(), 0..400),
    ) {
        let limits =
            LeaseLimits { step_samples: step, run_ahead_samples, window_samples, max_waiting_bytes: 300, ..LIMITS };
        let work_of = |position: usize| {
            let (budget_tokens, prefix) = lengths[position];
            Work { known_tokens: None, budget_tokens, prefix, same_as: Some(prefix.unwrap_or(9)) }
        };
        let mut table = LeaseTable::ordered(start..start + num, 4, limits, Box::new(work_of));
        let mut held = vec![Vec::new(); 4];
        let mut done = BTreeSet::new();
        let (mut now, mut committed) = (0, start);
        // Replica 0 is always there, so at the end it can do the rest.
        let rest = (0..4 * num).flat_map(|_| [Event::Grant(0), Event::Complete(0, 0), Event::Hear(0), Event::Wait(5)]);
        for replica in 0..4 {
            table.join(Replica(replica), capacity, at(0));
        }
        for event in events.into_iter().chain(rest) {
            match event {
                Event::Grant(replica) => {
                    let granted = grant(&mut table, replica, now);
                    for &position in &granted {
                        prop_assert!(!done.contains(&position), "{position} is done");
                        prop_assert!(!held[replica as usize].contains(&position) || table.replicas[replica as usize].held.len() <= capacity);
                        prop_assert!(position < committed + run_ahead_samples);
                    }
                    held[replica as usize].extend(granted);
                    prop_assert!(table.replicas[replica as usize].held.len() <= capacity);
                }
                Event::Complete(replica, nth) => {
                    let mine = &mut held[replica as usize];
                    if mine.is_empty() { continue }
                    let position = mine.remove(nth % mine.len());
                    let outcome = table.complete(Replica(replica), position, SampleSize { longest_tokens: 3, mean_tokens: 3, num_bytes: 100 }, at(now));
                    prop_assert_eq!(outcome == Arrival::First, done.insert(position));
                    // A step is committed once it is whole.
                    loop {
                        let end = (committed + step).min(start + num);
                        if committed == end || !(committed..end).all(|position| done.contains(&position)) { break }
                        committed = end;
                        table.commit(committed);
                    }
                    prop_assert!(table.num_waiting_bytes() < 300 + (4 * capacity + step) * 100);
                }
                Event::Wait(seconds) => { now += seconds; table.expire(at(now)); }
                Event::Hear(replica) => { table.hear(Replica(replica), at(now)); }
                Event::Leave(replica) => table.leave(Replica(replica)),
            }
        }
        prop_assert_eq!((done.len(), table.num_unfinished()), (num, 0));
    }
}
