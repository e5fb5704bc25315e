use std::time::Duration;

use super::*;
use crate::{Meeting, Member, Patience};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a function as each of several ranks.
fn as_ranks<T: Send>(num_ranks: usize, limit: Duration, run: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let meetings: Vec<Meeting> = (0..num_ranks).map(|_| Meeting::open().unwrap()).collect();
    let member = |(rank, meeting): (usize, &Meeting)| Member {
        name: format!("rank {rank}"),
        invitation: meeting.invitation("localhost").unwrap(),
    };
    let members: Vec<Member> = meetings.iter().enumerate().map(member).collect();
    std::thread::scope(|scope| {
        let (members, run) = (&members, &run);
        let started: Vec<_> = meetings
            .into_iter()
            .enumerate()
            .map(|(mine, meeting)| {
                scope.spawn(move || {
                    run(meeting
                        .join(mine, members, Patience { join: LIMIT, silence: limit }, &mut || Ok(()))
                        .unwrap())
                })
            })
            .collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_send_to_all_at_once_however_much_it_is() {
    for len in [0, 1, 5_000_000] {
        let of_rank = |rank: usize| vec![rank as u8; len];
        let came = as_ranks(4, LIMIT, |mut mesh| {
            let others: Vec<usize> = (0..4).filter(|&rank| rank != mesh.mine()).collect();
            (others.clone(), mesh.exchange(Kind::Gather, &others, &of_rank(mesh.mine()), &others).unwrap())
        });
        for (others, parts) in came {
            assert!(parts == others.into_iter().map(of_rank).collect::<Vec<_>>());
        }
    }
}

#[test]
fn messages_keep_their_order_and_may_come_before_they_are_wanted() {
    let came = as_ranks(2, LIMIT, |mut mesh| match mesh.mine() {
        0 => {
            mesh.send(1, Kind::Step, b"first").unwrap();
            mesh.send(1, Kind::Residual, b"second").unwrap();
            mesh.receive(1, Kind::Tokens).unwrap()
        }
        _ => {
            let mut all = mesh.receive(0, Kind::Step).unwrap();
            all.extend(mesh.receive(0, Kind::Residual).unwrap());
            mesh.send(0, Kind::Tokens, &all).unwrap();
            all
        }
    });
    assert_eq!(came, [b"firstsecond", b"firstsecond"]);
}

#[test]
fn a_rank_that_ends_is_named_and_what_it_said_before_is_heard() {
    let came = as_ranks(2, LIMIT, |mut mesh| {
        if mesh.mine() == 1 {
            mesh.send(0, Kind::Tokens, b"last words").unwrap();
            return String::new();
        }
        assert_eq!(mesh.receive(1, Kind::Tokens).unwrap(), b"last words");
        mesh.receive(1, Kind::Tokens).unwrap_err().to_string()
    });
    insta::assert_snapshot!(came[0], @"rank 1 computes a part of the model, and has ended");
}

#[test]
fn a_rank_with_something_else_to_say_is_named() {
    let came = as_ranks(2, LIMIT, |mut mesh| {
        mesh.send(1 - mesh.mine(), [Kind::Step, Kind::Gather][mesh.mine()], b"").unwrap();
        mesh.receive(1 - mesh.mine(), Kind::Gather).err().map(|error| error.to_string())
    });
    insta::assert_snapshot!(came[1].as_ref().unwrap(), @"rank 0 sent message 2 where a part of a tensor belongs: all ranks must run the same program with the same settings");
}

/// A rank that computes for long shows its life all the while; one that stands still does not.
#[test]
fn only_a_silent_rank_is_given_up() {
    let came = as_ranks(2, Duration::from_secs(2), |mut mesh| match mesh.mine() {
        1 => {
            std::thread::sleep(Duration::from_secs(4));
            mesh.send(0, Kind::Tokens, b"late").unwrap();
            // As if it was stopped: no sign of life any more, but no end.
            let kept: Vec<_> = mesh.peers.iter_mut().flatten().map(|peer| peer.writing.clone()).collect();
            drop(mesh);
            std::thread::sleep(Duration::from_secs(4));
            drop(kept);
            None
        }
        _ => {
            assert_eq!(mesh.receive(1, Kind::Tokens).unwrap(), b"late");
            Some(mesh.receive(1, Kind::Tokens).unwrap_err().to_string())
        }
    });
    insta::assert_snapshot!(came[0].as_ref().unwrap(), @"rank 1 computes a part of the model, and was not heard from for 2 s: it stands still, or cannot be reached");
}

#[test]
fn strangers_are_sent_away() {
    let meeting = Meeting::open().unwrap();
    let invitation = meeting.invitation("localhost").unwrap();
    assert_eq!(crate::Invitation::parse(&invitation.to_string()), Some(invitation.clone()));
    let port: u16 =
        invitation.to_string().rsplit_once('/').unwrap().0.rsplit_once(':').unwrap().1.parse().unwrap();
    let mut stranger = std::net::TcpStream::connect(("localhost", port)).unwrap();
    std::io::Write::write_all(&mut stranger, &[7; 12]).unwrap();
    let member = |name: &str| Member { name: name.to_owned(), invitation: invitation.clone() };
    let members = [member("rank 0"), member("rank 1")];
    let error = meeting
        .join(0, &members, Patience { join: Duration::from_millis(100), silence: LIMIT }, &mut || Ok(()))
        .unwrap_err();
    insta::assert_snapshot!(error, @"rank 1 did not come within 0 s");
}
