//! What a SentencePiece proto says of its pieces and of itself, as far as building another tokenizer needs it.
//!
//! Field numbers and defaults are those of `sentencepiece_model.proto`.

use super::proto::{Field, fields};

/// Kinds of pieces, `ModelProto.SentencePiece.Type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;
const UNIGRAM: u64 = 1;

/// A model proto.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelProto<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) is_unigram: bool,
    pub(super) byte_fallback: bool,
    pub(super) charsmap: &'a [u8],
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
    pub(super) unk_id: i64,
    pub(super) bos_id: i64,
    pub(super) eos_id: i64,
    pub(super) unk_piece: &'a str,
    pub(super) bos_piece: &'a str,
    pub(super) eos_piece: &'a str,
}

/// One piece; its id is its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: u64,
}

impl<'a> ModelProto<'a> {
    /// Reads a proto.
    ///
    /// # Errors
    /// When a string is not UTF-8, or there is no piece.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            is_unigram: true,
            byte_fallback: false,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            unk_piece: "<unk>",
            bos_piece: "<s>",
            eos_piece: "</s>",
        };
        for (number, field) in fields(bytes) {
            match (number, field) {
                (1, Field::Bytes(piece)) => {
                    let id = model.pieces.len();
                    model.pieces.push(parse_piece(piece).ok_or_else(|| format!("piece {id} is damaged"))?);
                }
                (2, Field::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => model.read_normalizer(normalizer),
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("it is not a SentencePiece model: it has no pieces".into());
        }
        Ok(model)
    }

    fn read_trainer(&mut self, trainer: &'a [u8]) -> Result<(), String> {
        for (number, field) in fields(trainer) {
            match (number, field) {
                (3, Field::Number(kind)) => self.is_unigram = kind == UNIGRAM,
                (35, Field::Number(flag)) => self.byte_fallback = flag != 0,
                // protobuf writes a negative int32 as its 64-bit two's complement.
                (40, Field::Number(id)) => self.unk_id = id as i64,
                (41, Field::Number(id)) => self.bos_id = id as i64,
                (42, Field::Number(id)) => self.eos_id = id as i64,
                (45..=47, Field::Bytes(text)) => {
                    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
                    match number {
                        45 => self.unk_piece = text,
                        46 => self.bos_piece = text,
                        _ => self.eos_piece = text,
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, normalizer: &'a [u8]) {
        for (number, field) in fields(normalizer) {
            match (number, field) {
                (2, Field::Bytes(charsmap)) => self.charsmap = charsmap,
                (3, Field::Number(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Field::Number(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Field::Number(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
    }

    /// The piece of an id.
    pub(super) fn piece(&self, id: u64) -> Option<&Piece<'a>> {
        self.pieces.get(usize::try_from(id).ok()?)
    }
}

fn parse_piece(bytes: &[u8]) -> Option<Piece<'_>> {
    let mut piece = Piece { text: "", score: 0.0, kind: NORMAL };
    for (number, field) in fields(bytes) {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?,
            (2, Field::Bytes(score)) => piece.score = f32::from_le_bytes(score.try_into().ok()?),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Some(piece)
}
