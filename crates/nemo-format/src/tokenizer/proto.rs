//! The fields of a protobuf message, as far as special tokens and the number of pieces of a SentencePiece model need them.

/// A field of a protobuf message.
pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, up to the first damaged one.
pub(crate) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut message)?;
        let len = match tag & 7 {
            0 => return Some((tag >> 3, Field::Number(varint(&mut message)?))),
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (field, rest) = message.split_at_checked(len)?;
        message = rest;
        Some((tag >> 3, Field::Bytes(field)))
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_at_the_first_damaged_one() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'a', b'b', 0x1d, 1, 2, 3, 4, 0x22, 9, b'x'];
        let found: Vec<u64> = fields(&message).map(|(number, _)| number).collect();
        assert_eq!(found, [1, 2, 3]);
        assert!(matches!(fields(&message).next(), Some((1, Field::Number(150)))));
    }
}
