//! SentencePiece models: BPE and Unigram, text to ids and back, equal to the C++ library (0.2).
//!
//! Sampling, n-best and training are not here. NeMo's wrapper around a model is in `wrapper`.

mod bpe;
mod normalizer;
mod proto;
mod unigram;
mod wrapper;

use std::collections::HashMap;

use prost::Message;

use normalizer::Normalizer;
use proto::{ModelProto, PieceKind, TrainerSpec};
pub use wrapper::SentencePieceTokenizer;

use super::SpecialTokens;
use super::hash::VocabMap;
use super::huggingface::byte_of_piece;
use super::trie::Trie;
use crate::DataError;

/// What stands for a space inside pieces.
pub(crate) const SPACE_SYMBOL: &str = "\u{2581}";
/// `TrainerSpec.model_type` of BPE; the default is Unigram.
const MODEL_TYPE_UNIGRAM: i32 = 1;
const MODEL_TYPE_BPE: i32 = 2;

#[derive(Debug)]
struct PieceEntry {
    text: String,
    score: f32,
    kind: PieceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Unigram,
    Bpe,
}

/// A SentencePiece model as the C++ library's processor has it.
#[derive(Debug)]
pub struct SentencePieceModel {
    pieces: Vec<PieceEntry>,
    // Normal, user-defined and unused pieces: what segmentation can produce.
    piece_ids: VocabMap<String, u32>,
    piece_trie: Trie,
    // Unknown, control and byte pieces, looked up first.
    reserved_ids: VocabMap<String, u32>,
    user_symbols: Trie,
    byte_ids: Option<Vec<u32>>,
    unk_id: u32,
    unk_surface: String,
    algorithm: Algorithm,
    normalizer: Normalizer,
    min_score: f32,
    max_score: f32,
    special: SpecialTokens,
}

impl SentencePieceModel {
    /// Reads a `.model` file. `reference` names it in errors.
    ///
    /// # Errors
    /// When the file is not a SentencePiece model of the BPE or Unigram kind, or breaks the library's own rules.
    pub fn from_bytes(reference: &str, bytes: &[u8]) -> Result<Self, DataError> {
        Self::load(bytes)
            .map_err(|reason| DataError::BadTokenizerFile { reference: reference.into(), reason })
    }

    fn load(bytes: &[u8]) -> Result<Self, String> {
        let proto =
            ModelProto::decode(bytes).map_err(|error| format!("not a SentencePiece model ({error})"))?;
        let trainer = proto.trainer_spec.unwrap_or_default();
        let algorithm = match trainer.model_type.unwrap_or(MODEL_TYPE_UNIGRAM) {
            MODEL_TYPE_UNIGRAM => Algorithm::Unigram,
            MODEL_TYPE_BPE => Algorithm::Bpe,
            other => return Err(format!("model type {other} is neither unigram (1) nor BPE (2)")),
        };
        let normalizer =
            Normalizer::new(&proto.normalizer_spec.unwrap_or_default(), trainer.treat_whitespace_as_suffix)?;
        let pieces = proto.pieces.into_iter().map(piece_entry).collect::<Result<Vec<_>, _>>()?;
        let index = PieceIndex::new(&pieces)?;
        let byte_ids = if trainer.byte_fallback.unwrap_or(false) { Some(index.byte_ids()?) } else { None };
        let unk_id = index.unk_id.ok_or("it has no unknown piece")?;
        let normal_scores =
            || pieces.iter().filter(|piece| piece.kind == PieceKind::Normal).map(|piece| piece.score);
        Ok(Self {
            special: special_ids(&trainer, &index, unk_id),
            piece_trie: Trie::new(index.piece_ids.iter().map(|(text, &id)| (text.as_str(), id))),
            user_symbols: Trie::new(
                index.user_symbols.iter().map(|&id| (pieces[id as usize].text.as_str(), id)),
            ),
            min_score: normal_scores().fold(f32::MAX, f32::min),
            max_score: normal_scores().fold(f32::MIN_POSITIVE, f32::max),
            piece_ids: index.piece_ids,
            reserved_ids: index.reserved_ids,
            byte_ids,
            unk_id,
            unk_surface: trainer.unk_surface.unwrap_or_else(|| " \u{2047} ".into()),
            algorithm,
            normalizer,
            pieces,
        })
    }

    /// Text to ids.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_normalized(&self.normalize(text))
    }

    /// The text after a special token, with nothing put in front of it.
    pub(crate) fn encode_continued(&self, text: &str) -> Vec<u32> {
        self.encode_normalized(&self.normalizer.normalize_continued(text, &self.user_symbols))
    }

    fn encode_normalized(&self, normalized: &str) -> Vec<u32> {
        let pieces = match self.algorithm {
            Algorithm::Bpe => bpe::segment(self, normalized),
            Algorithm::Unigram => unigram::segment(self, normalized),
        };
        let mut ids = Vec::with_capacity(pieces.len());
        let mut after_unknown = false;
        for (range, id) in pieces {
            let is_unknown = id == self.unk_id;
            match &self.byte_ids {
                Some(byte_ids) if is_unknown => {
                    ids.extend(normalized[range].bytes().map(|byte| byte_ids[usize::from(byte)]));
                }
                _ if is_unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = is_unknown;
        }
        ids
    }

    /// Text as it is segmented, spaces as `▁`.
    pub fn normalize(&self, text: &str) -> String {
        self.normalizer.normalize(text, &self.user_symbols)
    }

    /// Ids to text: control symbols vanish, and so does the space that the dummy prefix put in front.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let pieces = ids.iter().map(|&id| self.piece(id).map(|piece| (piece.text.as_str(), piece.kind)));
        Ok(self.join(pieces.collect::<Result<Vec<_>, _>>()?.into_iter()))
    }

    /// Pieces to text; anything else is kept as it is.
    pub(crate) fn decode_pieces(&self, pieces: &[&str]) -> String {
        self.join(pieces.iter().map(|&text| (text, self.kind(self.piece_to_id(text)))))
    }

    fn join<'a>(&self, pieces: impl Iterator<Item = (&'a str, PieceKind)>) -> String {
        let drops_space = self.normalizer.add_dummy_prefix || self.normalizer.remove_extra_whitespaces;
        let mut text = String::new();
        let mut bytes = Vec::new();
        let mut at_start = true;
        let mut dropped_space = false;
        for (piece, kind) in pieces {
            if let Some(byte) = byte_of_piece(piece).filter(|_| kind == PieceKind::Byte) {
                bytes.push(byte);
                continue;
            }
            push_bytes_lossy(&mut text, &mut bytes);
            at_start &= !dropped_space && text.is_empty();
            dropped_space = false;
            match kind {
                PieceKind::Control => {}
                PieceKind::Unknown if piece == self.unk_piece() => text.push_str(&self.unk_surface),
                PieceKind::Unknown => text.push_str(piece),
                _ => {
                    let mut surface = piece;
                    if at_start
                        && drops_space
                        && let Some(rest) = surface.strip_prefix(SPACE_SYMBOL)
                    {
                        surface = rest;
                        // With extra spaces removed, every leading space goes, not only the first.
                        dropped_space = !self.normalizer.remove_extra_whitespaces;
                    }
                    text.push_str(&surface.replace(SPACE_SYMBOL, " "));
                }
            }
        }
        push_bytes_lossy(&mut text, &mut bytes);
        text
    }

    /// The same model with nothing put in front of a text.
    pub(crate) fn without_dummy_prefix(mut self) -> Self {
        self.normalizer.add_dummy_prefix = false;
        self
    }

    /// The bytes of one token in the middle of a text; a control symbol gives its own name.
    ///
    /// # Errors
    /// When the id is not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        let piece = self.piece(id)?;
        Ok(match piece.kind {
            PieceKind::Control => piece.text.clone().into_bytes(),
            PieceKind::Unknown => self.unk_surface.clone().into_bytes(),
            PieceKind::Byte => byte_of_piece(&piece.text).into_iter().collect(),
            _ => piece.text.replace(SPACE_SYMBOL, " ").into_bytes(),
        })
    }

    /// The id of a piece by its text; the unknown id if there is none.
    pub fn piece_to_id(&self, piece: &str) -> u32 {
        self.find_piece(piece).unwrap_or(self.unk_id)
    }

    /// The id of a piece by its text.
    pub(crate) fn find_piece(&self, piece: &str) -> Option<u32> {
        self.reserved_ids.get(piece).or_else(|| self.piece_ids.get(piece)).copied()
    }

    /// Number of pieces.
    pub fn num_pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The special ids that the model itself names.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Control symbols and the unknown piece, which segmentation never produces from their text.
    pub(crate) fn control_pieces(&self) -> impl Iterator<Item = (&str, u32)> {
        let is_control = |kind| matches!(kind, PieceKind::Control | PieceKind::Unknown);
        (0u32..)
            .zip(&self.pieces)
            .filter(move |(_, piece)| is_control(piece.kind))
            .map(|(id, piece)| (piece.text.as_str(), id))
    }

    /// Whether a piece is a control or a user-defined symbol.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        matches!(self.kind(id), PieceKind::Control | PieceKind::UserDefined)
    }

    fn unk_piece(&self) -> &str {
        self.pieces.get(self.unk_id as usize).map_or("", |piece| &piece.text)
    }

    /// The text of a piece, spaces as `▁`.
    pub(crate) fn piece_text(&self, id: u32) -> Result<&str, DataError> {
        Ok(&self.piece(id)?.text)
    }

    fn piece(&self, id: u32) -> Result<&PieceEntry, DataError> {
        let unknown = || DataError::UnknownTokenId { id, vocab_size: self.pieces.len() };
        self.pieces.get(id as usize).ok_or_else(unknown)
    }

    fn kind(&self, id: u32) -> PieceKind {
        self.pieces.get(id as usize).map_or(PieceKind::Unknown, |piece| piece.kind)
    }

    fn score(&self, id: u32) -> f32 {
        self.pieces.get(id as usize).map_or(0.0, |piece| piece.score)
    }
}

/// The tables that `InitializePieces` of the C++ library fills.
#[derive(Default)]
struct PieceIndex {
    piece_ids: VocabMap<String, u32>,
    reserved_ids: VocabMap<String, u32>,
    user_symbols: Vec<u32>,
    unk_id: Option<u32>,
    byte_ids: HashMap<u8, u32>,
    controls: HashMap<String, u32>,
}

impl PieceIndex {
    fn new(pieces: &[PieceEntry]) -> Result<Self, String> {
        let mut index = Self::default();
        for (id, piece) in (0u32..).zip(pieces) {
            let text = &piece.text;
            let is_producible =
                matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
            let table = if is_producible { &mut index.piece_ids } else { &mut index.reserved_ids };
            if table.insert(text.clone(), id).is_some() {
                return Err(format!("piece `{text}` is there twice"));
            }
            match piece.kind {
                PieceKind::UserDefined => index.user_symbols.push(id),
                PieceKind::Unknown if index.unk_id.is_some() => {
                    return Err("it has two unknown pieces".into());
                }
                PieceKind::Unknown => index.unk_id = Some(id),
                PieceKind::Control => drop(index.controls.insert(text.clone(), id)),
                PieceKind::Byte => {
                    let byte =
                        byte_of_piece(text).ok_or_else(|| format!("byte piece `{text}` is not `<0xNN>`"))?;
                    index.byte_ids.insert(byte, id);
                }
                PieceKind::Normal | PieceKind::Unused => {}
            }
        }
        Ok(index)
    }

    fn byte_ids(&self) -> Result<Vec<u32>, String> {
        let missing = |byte: u8| format!("byte fallback is on, but the piece `<0x{byte:02X}>` is missing");
        (0..=255).map(|byte| self.byte_ids.get(&byte).copied().ok_or_else(|| missing(byte))).collect()
    }
}

fn piece_entry(piece: proto::Piece) -> Result<PieceEntry, String> {
    let kind = match piece.kind {
        None => PieceKind::Normal,
        Some(kind) => PieceKind::try_from(kind).map_err(|_| format!("piece kind {kind} is unknown"))?,
    };
    let text = piece.piece.unwrap_or_default();
    let score = piece.score.unwrap_or(0.0);
    if text.is_empty() {
        return Err("it has an empty piece".into());
    }
    if score.is_nan() {
        return Err(format!("the score of piece `{text}` is not a number"));
    }
    Ok(PieceEntry { text, score, kind })
}

/// BOS, EOS and padding count only if the model has them as control symbols.
fn special_ids(trainer: &TrainerSpec, index: &PieceIndex, unk_id: u32) -> SpecialTokens {
    let id_of = |piece: &Option<String>, default: &str| {
        index.controls.get(piece.as_deref().unwrap_or(default)).copied()
    };
    SpecialTokens {
        bos: id_of(&trainer.bos_piece, "<s>"),
        eos: id_of(&trainer.eos_piece, "</s>"),
        pad: id_of(&trainer.pad_piece, "<pad>"),
        unk: Some(unk_id),
    }
}

/// Appends `bytes` as text and empties it. Each byte that is in no character becomes one U+FFFD, as in the C++ library;
/// `String::from_utf8_lossy` would make one of several.
fn push_bytes_lossy(text: &mut String, bytes: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, chunk.invalid().len()));
    }
    bytes.clear();
}

#[cfg(test)]
mod tests;
