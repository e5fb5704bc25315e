//! One connection: frames out and in, without ever waiting.
//!
//! A frame is a byte that says its kind, the length of its content as 8 bytes, little endian, and the content. A sign of
//! life is a byte alone, so it can always be written whole.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kind of a sign of life.
pub(crate) const ALIVE: u8 = 0;
const HEADER_BYTES: usize = 9;
/// No message of ranks is larger; a length beyond it is none.
const MAX_FRAME_BYTES: u64 = 1 << 40;
/// What is read at once while it is not known how much comes.
const CHUNK_BYTES: usize = 1 << 16;
/// Room that is made at once for what is said to come.
const MOST_READ_BYTES: usize = 1 << 24;

/// The end of a connection that writes. Frames and signs of life of several threads do not mix.
#[derive(Clone, Debug)]
pub(crate) struct Writing(Arc<Mutex<WriteEnd>>);

#[derive(Debug)]
pub(crate) struct WriteEnd {
    stream: TcpStream,
    /// A frame has begun and has not ended.
    is_in_frame: bool,
}

impl Writing {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(WriteEnd { stream, is_in_frame: false })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, WriteEnd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows that this process lives. A full connection is no failure: what is in it shows the same.
    pub(crate) fn show_life(&self) {
        let mut end = self.lock();
        if !end.is_in_frame {
            // A lost connection is noticed by who uses it.
            let _ = end.stream.write(&[ALIVE]);
        }
    }
}

/// A frame on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    header: [u8; HEADER_BYTES],
    content: &'a [u8],
    num_written: usize,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(kind: u8, content: &'a [u8]) -> Self {
        let mut header = [kind; HEADER_BYTES];
        header[1..].copy_from_slice(&(content.len() as u64).to_le_bytes());
        Self { header, content, num_written: 0 }
    }

    pub(crate) fn is_out(&self) -> bool {
        self.num_written == HEADER_BYTES + self.content.len()
    }

    /// Writes what the connection takes now; whether that was anything.
    pub(crate) fn advance(&mut self, end: &mut WriteEnd) -> std::io::Result<bool> {
        let before = self.num_written;
        let written = self.write(&mut end.stream);
        end.is_in_frame = self.num_written > 0 && !self.is_out();
        written.map(|()| self.num_written > before)
    }

    fn write(&mut self, stream: &mut TcpStream) -> std::io::Result<()> {
        while !self.is_out() {
            let rest = match self.num_written.checked_sub(HEADER_BYTES) {
                Some(of_content) => &self.content[of_content..],
                None => &self.header[self.num_written..],
            };
            match stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.num_written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The end of a connection that reads.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) stream: TcpStream,
    /// Bytes of a frame that is not complete.
    buffer: Vec<u8>,
    frames: VecDeque<Frame>,
}

/// A frame that has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) content: Vec<u8>,
}

impl Reading {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), frames: VecDeque::new() }
    }

    /// The oldest frame that has come and was not taken.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Reads what is there now; whether that was anything, a sign of life included.
    pub(crate) fn advance(&mut self) -> std::io::Result<bool> {
        let mut has_life = false;
        loop {
            let start = self.buffer.len();
            self.buffer.resize(start + self.missing(), 0);
            let read = self.stream.read(&mut self.buffer[start..]);
            self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    has_life = true;
                    self.unpack()?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(has_life),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes to read for the frame that has begun.
    fn missing(&self) -> usize {
        match content_len(&self.buffer) {
            Some(len) => (HEADER_BYTES + len).saturating_sub(self.buffer.len()).clamp(1, MOST_READ_BYTES),
            None => CHUNK_BYTES,
        }
    }

    /// Takes what is complete out of the buffer.
    fn unpack(&mut self) -> std::io::Result<()> {
        let mut rest = self.buffer.as_slice();
        loop {
            let signs = rest.iter().take_while(|&&byte| byte == ALIVE).count();
            rest = &rest[signs..];
            let Some(len) = content_len(rest) else { break };
            if len as u64 > MAX_FRAME_BYTES {
                return Err(std::io::Error::new(ErrorKind::InvalidData, format!("a message of {len} bytes")));
            }
            let Some(content) = rest.get(HEADER_BYTES..HEADER_BYTES + len) else { break };
            self.frames.push_back(Frame { kind: rest[0], content: content.to_vec() });
            rest = &rest[HEADER_BYTES + len..];
        }
        let num_taken = self.buffer.len() - rest.len();
        self.buffer.drain(..num_taken);
        Ok(())
    }
}

/// How long the content of the frame at the start is, when that is known.
fn content_len(buffer: &[u8]) -> Option<usize> {
    let bytes = buffer.get(1..HEADER_BYTES)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        for stream in [&one, &other] {
            stream.set_nonblocking(true).unwrap();
        }
        (one, other)
    }

    #[test]
    fn frames_come_whole_and_in_order_whatever_the_connection_takes_at_once() {
        let (one, other) = pair();
        let (writing, mut reading) = (Writing::new(one), Reading::new(other));
        let large: Vec<u8> = (0..9_000_000_u32).map(|idx| idx as u8).collect();
        let mut came = Vec::new();
        for content in [&b""[..], b"abc", &large, b"end"] {
            writing.show_life();
            let mut frame = Outgoing::new(7, content);
            while !frame.is_out() {
                frame.advance(&mut writing.lock()).unwrap();
                // Not into the middle of a frame.
                writing.show_life();
                reading.advance().unwrap();
            }
        }
        while came.len() < 4 {
            reading.advance().unwrap();
            came.extend(reading.take());
        }
        let contents: Vec<&[u8]> = came.iter().map(|frame| frame.content.as_slice()).collect();
        assert!(contents == [&b""[..], b"abc", &large, b"end"]);
        assert!(came.iter().all(|frame| frame.kind == 7));
        assert!(reading.take().is_none());
    }

    #[test]
    fn an_end_and_a_length_that_is_none_are_errors() {
        let (mut one, other) = pair();
        let mut reading = Reading::new(other);
        one.write_all(&[ALIVE, 3, 255, 255, 255, 255, 255, 255, 255, 127]).unwrap();
        let error = loop {
            match reading.advance() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let (one, other) = pair();
        drop(one);
        assert_eq!(Reading::new(other).advance().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
