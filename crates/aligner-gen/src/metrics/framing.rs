//! How the two file formats divide a file into records.
//!
//! TensorBoard: TFRecord, each record with its length and masked CRC-32C sums before and behind it. Weights & Biases:
//! the log format of LevelDB (blocks of 32 KiB, records cut at their ends), with zlib's CRC-32 as the sum.

use std::io::{self, Write};

/// The sum of a TFRecord's part. The mask keeps a sum over data that holds sums itself from being weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The payload of the first TFRecord and what is behind it; none where it is cut off or damaged.
pub(super) fn read_tf_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let num_bytes = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (payload, rest) = rest.split_at_checked(num_bytes)?;
    let (payload_sum, rest) = rest.split_first_chunk::<4>()?;
    let is_whole =
        u32::from_le_bytes(*sum) == masked(length) && u32::from_le_bytes(*payload_sum) == masked(payload);
    is_whole.then_some((payload, rest))
}

/// One TFRecord.
pub(super) fn tf_record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked(&length).to_le_bytes());
    record.extend_from_slice(payload);
    record.extend_from_slice(&masked(payload).to_le_bytes());
    record
}

/// A LevelDB log as Weights & Biases writes it.
#[derive(Debug)]
pub(super) struct LevelDbLog<W> {
    out: W,
    offset_bytes: usize,
}

impl<W: Write> LevelDbLog<W> {
    const BLOCK_BYTES: usize = 32 << 10;
    /// Sum, length and kind.
    const HEADER_BYTES: usize = 7;
    /// `:W&B`, the magic number 0xBEE1 and version 0.
    const START: [u8; 7] = *b":W&B\xe1\xbe\x00";

    /// Starts the file.
    pub(super) fn start(mut out: W) -> io::Result<Self> {
        out.write_all(&Self::START)?;
        Ok(Self { out, offset_bytes: Self::START.len() })
    }

    /// Appends one record in a single write, so that a killed run leaves whole records.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(record.len() + 2 * Self::HEADER_BYTES);
        let mut rest = record;
        let mut is_first = true;
        loop {
            let left = Self::BLOCK_BYTES - (self.offset_bytes + bytes.len()) % Self::BLOCK_BYTES;
            if left < Self::HEADER_BYTES {
                bytes.resize(bytes.len() + left, 0);
                continue;
            }
            let (piece, after) = rest.split_at(rest.len().min(left - Self::HEADER_BYTES));
            let kind: u8 = match (is_first, after.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let mut sum = crc32fast::Hasher::new();
            sum.update(&[kind]);
            sum.update(piece);
            bytes.extend_from_slice(&sum.finalize().to_le_bytes());
            // A piece fits into a block, which is less than 64 KiB.
            bytes.extend_from_slice(&(piece.len() as u16).to_le_bytes());
            bytes.push(kind);
            bytes.extend_from_slice(piece);
            if after.is_empty() {
                break;
            }
            rest = after;
            is_first = false;
        }
        self.out.write_all(&bytes)?;
        self.offset_bytes += bytes.len();
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The payloads of a TFRecord file; panics where the file is wrong.
    pub(in super::super) fn read_tf_records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let masked = |bytes: &[u8]| {
            // As the format's description has it.
            let sum = u64::from(crc32c::crc32c(bytes));
            (((sum >> 15) | (sum << 17)) as u32).wrapping_add(0xa282_ead8)
        };
        let mut payloads = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(bytes[8..12].try_into().unwrap()), masked(&bytes[..8]));
            let payload = &bytes[12..12 + length];
            let sum = u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap());
            assert_eq!(sum, masked(payload));
            payloads.push(payload.to_vec());
            bytes = &bytes[16 + length..];
        }
        payloads
    }

    /// The records of a W&B log; panics where the file is wrong.
    pub(in super::super) fn read_level_db_log(bytes: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(&bytes[..7], b":W&B\xe1\xbe\x00");
        let (mut at, mut records, mut open) = (7, Vec::new(), None::<Vec<u8>>);
        while at < bytes.len() {
            let left = 32_768 - at % 32_768;
            if left < 7 {
                assert!(bytes[at..].iter().take(left).all(|&byte| byte == 0));
                at += left;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
            assert!(length + 7 <= left, "a piece goes over the end of its block");
            let sum = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(sum, crc32fast::hash(&bytes[at + 6..at + 7 + length]));
            let (kind, piece) = (bytes[at + 6], &bytes[at + 7..at + 7 + length]);
            assert_eq!(open.is_some(), matches!(kind, 3 | 4), "kind {kind}");
            open.get_or_insert_default().extend_from_slice(piece);
            if matches!(kind, 1 | 4) {
                records.extend(open.take());
            }
            at += 7 + length;
        }
        assert!(open.is_none());
        records
    }

    #[test]
    fn a_tf_record_is_tensorboards() {
        // Written by tensorboard 2.21's `RecordWriter` for the payload `abc`.
        let expect = b"\x03\0\0\0\0\0\0\0\xb0\x99I\x0eabcnW\xf1!";
        assert_eq!(tf_record(b"abc"), expect);
    }

    proptest! {
        #[test]
        fn records_come_back(
            sizes in prop::collection::vec(prop_oneof![0_usize..40, 32_700_usize..32_800, 60_000_usize..100_000], 0..8),
        ) {
            let records: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(nth, &size)| vec![nth as u8 + 1; size]).collect();
            let mut log = LevelDbLog::start(Vec::new()).unwrap();
            for record in &records {
                log.append(record).unwrap();
            }
            prop_assert_eq!(read_level_db_log(&log.out), records.clone());
            let file: Vec<u8> = records.iter().flat_map(|record| tf_record(record)).collect();
            prop_assert_eq!(read_tf_records(&file), records);
        }
    }
}
