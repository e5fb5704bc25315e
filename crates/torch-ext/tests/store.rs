//! The store over loopback: mailboxes, time-outs, what a lost server looks like.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use torch_ext::store::Store;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

fn serve() -> Store {
    Store::serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap()
}

#[test]
fn a_queue_is_a_mailbox_that_leaves_nothing_behind() {
    let server = serve();
    let client = Store::connect("127.0.0.1", server.port(), LONG).unwrap();
    let large = vec![7_u8; 3 << 20];
    for value in [b"first".as_slice(), &[], &large] {
        client.push("inbox", value).unwrap();
    }
    // On the connection of the pushes, which are not answered.
    assert_eq!(client.queue_len("inbox").unwrap(), 3);
    for value in [b"first".as_slice(), &[], &large] {
        assert_eq!(server.pop("inbox", LONG).unwrap().unwrap(), value);
    }
    assert_eq!(server.queue_len("inbox").unwrap(), 0);
    assert_eq!(server.pop("inbox", SHORT).unwrap(), None);
    assert_eq!(server.get("nothing", SHORT).unwrap(), None);
    client.set("port", b"1").unwrap();
    assert_eq!(server.get("port", LONG).unwrap().unwrap(), b"1");
}

#[test]
fn a_waiting_pop_gets_what_comes() {
    let server = Arc::new(serve());
    let client = Store::connect("127.0.0.1", server.port(), LONG).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.pop("late", LONG).unwrap().unwrap());
        std::thread::sleep(SHORT);
        server.push("late", b"now").unwrap();
        assert_eq!(waiting.join().unwrap(), b"now");
    });
}

#[test]
fn failures_are_errors_with_their_text() {
    let server = serve();
    let port = server.port();
    let client = Store::connect("127.0.0.1", port, LONG).unwrap();
    drop(server);
    assert!(
        !client
            .push("inbox", b"x")
            .and_then(|()| client.queue_len("inbox"))
            .unwrap_err()
            .to_string()
            .is_empty()
    );
    let started = Instant::now();
    let error = Store::connect("127.0.0.1", port, Duration::from_millis(500)).unwrap_err().to_string();
    assert!(error.contains("timed out") && !error.contains("frame #"), "{error}");
    assert!(started.elapsed() < LONG);
}
